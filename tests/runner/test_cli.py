"""What the command line says when it ends early."""

import sys

import pytest

from workbench import cli
from workbench.runner import pilot_run


@pytest.mark.parametrize("notebooks", ["--notebooks", "--no-notebooks"])
def test_an_interruption_between_two_stages_is_said(monkeypatch, capsys, tmp_path, notebooks):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    pilot = tmp_path / "pilot.yaml"
    pilot.write_text("name: short\nquestion: Is Ctrl-C said?\n")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(pilot_run, "execute", interrupted)
    monkeypatch.setattr(pilot_run, "_notebook", interrupted)
    monkeypatch.setattr(sys, "argv", ["workbench", "run", str(pilot), notebooks])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err
