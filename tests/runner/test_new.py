"""``workbench new``: answers become a commented pilot that is checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.cli import app, new
from workbench.errors import ConfigError
from workbench.machine.device import Device
from workbench.pilot.draft import Answers, draft
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.model import Model
from workbench.runner.forecast import Forecast, forecast
from workbench.train import timed_step
from workbench.train.timed_step import step_time

SMALL = ["--set", "data.max_bytes=200000", "--set", "data.sequence_length=32"]


@pytest.fixture
def here(monkeypatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    rows = "".join(f"{i * 0.5},{50 + i % 40},{10 + i % 9}\n" for i in range(60))
    (tmp_path / "log.csv").write_text(f"ts,inp,out\n{rows}")
    return tmp_path


def made(*words: str, answers: str | None = None):
    return CliRunner().invoke(app, ["new", *words], input=answers)


def test_flags_alone_write_a_pilot_that_is_checked_and_foreseen(here: Path) -> None:
    (here / "mine").mkdir()
    columns = [f"--column={role}={name}" for role, name in
               (("time", "ts"), ("prompt", "inp"), ("output", "out"))]  # fmt: skip
    gates = ["--gate", "memory_ratio=3", "--gate", "energy_ratio{arm=ternary}>=1.2"]
    result = made("mine/chat.yaml", "--yes", "--model=tiny-1m", "--trace=log.csv", "--device=cpu",
                  *columns, *gates, *SMALL)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["mine/chat.yaml"]
    for what in ("time: ", "train_qat: ", "memory: ", "disk: ", "workbench run mine/chat.yaml"):
        assert what in result.stderr
    pilot = resolve(here / "mine" / "chat.yaml").pilot
    assert (pilot.name, pilot.model.preset, pilot.data.max_bytes) == ("chat", "tiny-1m", 200_000)
    assert pilot.profile_load.trace == str(here / "log.csv")
    assert pilot.profile_load.columns == {"time": "ts", "prompt": "inp", "output": "out"}
    limits = {gate.metric: gate.at_least for gate in pilot.report.gates if gate.at_least}
    assert limits | {"memory_ratio": 3.0, "decode_speedup": 1.5, "energy_ratio": 1.2} == limits
    text = (here / "mine" / "chat.yaml").read_text()
    assert "  # optimizer steps" not in text
    assert "  # a shape of workbench.model.presets\n  preset: tiny-1m" in text


def test_what_no_flag_gives_is_asked_until_it_means_something(here: Path, monkeypatch) -> None:
    monkeypatch.setattr(new, "_somebody_answers", lambda: True)
    asked = ["Is it good?", "tiny-9m", "tiny-1m", "", "nowhere.csv", "log.csv",
             "time=ts, prompt=inp, output=out", "none", "cpu", "", "", "0.2"]  # fmt: skip
    result = made("ours.yaml", *SMALL, answers="\n".join(asked) + "\n")
    assert result.exit_code == 0, result.output
    assert "model tiny-9m: no preset and no path; did you mean tiny-" in result.stderr
    assert "nowhere.csv: no such file" in result.stderr
    pilot = resolve(here / "ours.yaml").pilot
    assert pilot.question == "Is it good?"
    assert pilot.profile_load.columns == {"time": "ts", "prompt": "inp", "output": "out"}
    assert pilot.measure_ab.meters.sources == []
    quality = [g for g in pilot.report.gates if g.metric == "quality_gap_bits_per_byte"]
    assert [gate.at_most for gate in quality] == [0.2]


def test_what_cannot_start_keeps_the_file_and_names_its_line(here: Path) -> None:
    result = made("chat.yaml", "--yes", "--trace=log.csv", *SMALL)
    assert isinstance(result.exception, ConfigError)
    assert "ts, inp, out" in str(result.exception)
    assert (here / "chat.yaml").exists()
    again = made("chat.yaml", "--yes")
    assert isinstance(again.exception, ConfigError)
    assert "--force" in str(again.exception)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (Answers("?", model="tiny-9m"), "no preset and no path; did you mean"),
        (Answers("?", meters=("none", "auto")), "beside others"),
        (Answers("?", meters=("snmp: 7",)), "no mapping"),
        (Answers("?", gates=("speed=2",)), "none of the usual ones"),
        (Answers("?", gates=("speed",)), "METRIC<=LIMIT"),
        (Answers("?", fields=("train",)), "section.key=value"),
    ],
)
def test_an_answer_that_means_nothing_is_refused(answers: Answers, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        draft(Path("a.yaml"), answers, ("tiny-1m", "tiny-2m"))


def test_a_meter_of_the_network_becomes_its_section(here: Path) -> None:
    meters = ("snmp: {host: 10.0.0.7, profile: apc}",)
    (here / "a.yaml").write_text(draft(here / "a.yaml", Answers("?", meters=meters), ("tiny-2m",)))
    section = resolve(here / "a.yaml").pilot.measure_ab.meters
    assert [meter.host for meter in section.snmp] == ["10.0.0.7"]


def test_a_large_model_is_timed_by_its_layers(monkeypatch) -> None:
    timed = []

    def seconds(model, config, layers, batch, sequence, device, *, ternary, bf16):
        timed.append((layers, batch * sequence))
        return (3.0 + layers) * batch * sequence / 1000

    monkeypatch.setattr(timed_step, "_seconds", seconds)
    from workbench.model.build import preset_config

    section = Model(preset="small-25m")
    step = step_time(section, preset_config(section, 4096, 128), 32, 1024, "cpu")
    assert {layers for layers, _ in timed} == {1, 2}
    assert max(tokens for _, tokens in timed) < 32 * 1024
    assert step.full_precision_s == pytest.approx((3.0 + 7) * 32 * 1024 / 1000)
    assert "extrapolated" in step.how


def test_what_does_not_fit_is_said() -> None:
    device = Device("cpu", "no GPU")
    small = Forecast(device, {"report": (1.0, 2.0)}, 9e9, 8_000_000_000, 1e9, 2_000_000_000,
                     Path("runs"), {"report": "counted"})  # fmt: skip
    assert [problem.split(" GB")[0] for problem in small.problems()] == ["training needs about 9"]


def test_training_that_is_longer_is_foreseen_longer(monkeypatch) -> None:
    short, long = (
        forecast(resolve("workbench:smoke", [f"train.steps={steps}"]).pilot).stages_s["train_qat"]
        for steps in (10, 1000)
    )
    assert long[0] > 10 * short[0]


def test_the_memory_foreseen_is_that_of_command_kernel_and_server_together() -> None:
    """1.68 GB were measured of ``workbench run workbench:smoke``: the proportional set sizes of all
    its processes, at the fullest, 2026-11-29."""
    foreseen = forecast(resolve("workbench:smoke", ["readiness.device=cpu"]).pilot)
    assert foreseen.fullest == "measuring all arms"
    assert foreseen.memory_bytes == pytest.approx(1.68e9, rel=0.15)
