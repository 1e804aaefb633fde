"""What the command line says when it ends early."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import workbench
from workbench import cli
from workbench.bench import cpu, gpu
from workbench.model.presets import PRESETS
from workbench.pilot.resolve import resolve
from workbench.records import terminal
from workbench.records.run import open_run
from workbench.roadmap import STAGES
from workbench.runner import checks, pilot_run
from workbench.study.run import STUDIES


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


def commands(group, *names: str) -> Iterator[tuple[str, Any]]:
    """Full name and command of each, those of sub-commands included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name)), command


ROOT = typer.main.get_command(cli.app)
COMMANDS = dict(commands(ROOT))


def said(monkeypatch, capsys, *words: str, **environment: str) -> str:
    """What ``workbench WORDS`` prints on a wide terminal, before it ends with 0."""
    for name, value in {"COLUMNS": "240", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["workbench", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_what_is_taken_without_an_option(monkeypatch, capsys, name):
    command, shown = COMMANDS[name], said(monkeypatch, capsys, *name.split(), "--help")
    for parameter in command.params:
        is_flag = getattr(parameter, "is_flag", False) and not parameter.secondary_opts
        if parameter.required or is_flag or parameter.name == "help":
            continue
        label = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
        rows = [row for row in shown.splitlines() if row.startswith("│")]
        (line,) = [row for row in rows if f" {label} " in row]
        assert "[default: " in line, f"workbench {name} {label} hides its default: {line}"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_word_of_a_help_text_is_taken_for_markup(monkeypatch, capsys, name):
    shown = said(monkeypatch, capsys, *name.split(), "--help")
    for parameter in COMMANDS[name].params:
        for word in (getattr(parameter, "help", None) or "").split():
            assert word in shown, f"workbench {name} {parameter.opts}: {word!r} is swallowed"


def test_help_names_the_choices_of_free_words(monkeypatch, capsys):
    choices = {
        "run": STAGES,
        "stage": STAGES,
        "study": STUDIES,
        "bench cpu": {**cpu.SHAPES, **cpu.NEEDS_S},
        "bench train": PRESETS,
        "bench gpu": gpu.PARTS,
    }
    for name, words in choices.items():
        shown = said(monkeypatch, capsys, *name.split(), "--help")
        assert not [word for word in words if word not in shown], name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "{pilot}"), "checking the pilot"),
        (("runs",), "reading the runs"),
        (("compare", "{run}", "{other}"), "reading the runs and holding"),
        (("report", "{run}"), "judging and drawing short"),
    ],
)
def test_a_command_that_takes_long_says_what_it_does(
    monkeypatch, capsys, tmp_path, words: tuple[str, ...], says: str
) -> None:
    """As on a crowded machine, where its imports alone take many seconds."""
    pilot = tmp_path / "pilot.yaml"
    pilot.write_text("name: short\nquestion: Is it said?\n")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    names = {"pilot": pilot, "run": open_run(resolve(pilot)).name}
    names["other"] = open_run(resolve(pilot, ["seed=7"])).name
    monkeypatch.setattr(terminal, "SLOW_S", 0.0)
    monkeypatch.setattr(checks, "stage_check", lambda name: time.sleep(0.01))
    monkeypatch.setattr(sys, "argv", ["workbench", *(word.format(**names) for word in words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert says in capsys.readouterr().err
    monkeypatch.setattr(terminal, "SLOW_S", 600.0)
    with pytest.raises(SystemExit):
        cli.main()
    assert says not in capsys.readouterr().err, "where it is quick it only does it"


def test_version(monkeypatch, capsys):
    assert said(monkeypatch, capsys, "--version") == f"workbench {workbench.__version__}\n"


def test_a_shell_completes_commands_stages_and_runs(monkeypatch, capsys, tmp_path):
    # Under python -m pytest the name of the command, which the variable has, would be another.
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash")  # make runs in sh
    assert "COMP_WORDS" in said(monkeypatch, capsys, "--show-completion", "bash")
    (tmp_path / "quickstart" / "2026-1").mkdir(parents=True)
    (tmp_path / "quickstart" / "2026-1" / "run.json").touch()
    for typed, completed in {
        "workbench rep": "report",
        "workbench stage hyb": "hybrid_plan",
        "workbench report qui": "quickstart/2026-1",
    }.items():
        shown = said(
            monkeypatch,
            capsys,
            _WORKBENCH_COMPLETE="complete_bash",
            WORKBENCH_RUNS=str(tmp_path),
            COMP_WORDS=typed,
            COMP_CWORD=str(len(typed.split()) - 1),
        )
        assert shown.split() == [completed]
