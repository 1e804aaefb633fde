"""``workbench new``: answers become a commented pilot that is checked before anything starts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from workbench.cli import app, new
from workbench.data.corpus import read_corpus
from workbench.errors import ConfigError
from workbench.machine.device import Device
from workbench.model.presets import PRESETS
from workbench.pilot.draft import DECIDES, OPTIONS, Answers, draft
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.data import Data
from workbench.pilot.sections.model import Model
from workbench.runner.forecast import Forecast, forecast
from workbench.runner.text_ahead import text_ahead
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
             "ts", "inp", "out", "none", "cpu", "", "", "0.2"]  # fmt: skip
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


def test_a_refusal_leaves_no_file_and_names_the_options(here: Path) -> None:
    words = ["chat.yaml", "--yes", "--trace=log.csv", "--column=time=ts", "--column=prompt=inp"]
    result = made(*words, "--column=output=oup", *SMALL)
    assert isinstance(result.exception, ConfigError)
    said = str(result.exception)
    assert "did you mean out?" in said and "--column (profile_load.columns.output)" in said
    assert said.count("allowed: ") == said.count("next: ") == 1
    assert "chat.yaml was not written" in said and not (here / "chat.yaml").exists()
    (here / "chat.yaml").write_text("mine")
    again = made(*words, "--force", "--column=output=oup", *SMALL)
    assert "chat.yaml is as it was" in str(again.exception)
    assert (here / "chat.yaml").read_text() == "mine"
    there = made("chat.yaml", "--yes")
    assert isinstance(there.exception, ConfigError)
    assert "--force" in str(there.exception)


def test_refused_answers_come_back_as_a_command(here: Path, monkeypatch) -> None:
    monkeypatch.setattr(new, "_somebody_answers", lambda: True)
    monkeypatch.setattr(new, "_check_and_forecast", _refuse)
    asked = ["Is it good?", "tiny-1m", "", "none", "none", "cpu", "", "", "0.2"]
    result = made("ours.yaml", *SMALL, answers="\n".join(asked) + "\n")
    command = str(result.exception).splitlines()[-1].split()
    assert command[:3] == ["workbench", "new", "ours.yaml"]
    monkeypatch.setattr(new, "_check_and_forecast", lambda pilot: None)
    written = CliRunner().invoke(app, shlex.split(str(result.exception).splitlines()[-1])[1:])
    assert written.exit_code == 0, written.output
    pilot = resolve(here / "ours.yaml").pilot
    assert (pilot.question, pilot.model.preset) == ("Is it good?", "tiny-1m")
    assert (pilot.data.max_bytes, pilot.readiness.device) == (200_000, "cpu")
    assert [g.at_most for g in pilot.report.gates if g.metric == "quality_gap_bits_per_byte"] == [
        0.2
    ]


def _refuse(pilot: Path) -> None:
    raise ConfigError(f"{pilot}:3: model.checkpoint: no", next_step="set data.vocab_size")


def test_columns_are_asked_one_by_one_and_none_leads_out(here: Path, monkeypatch) -> None:
    monkeypatch.setattr(new, "_somebody_answers", lambda: True)
    monkeypatch.setattr(new, "_check_and_forecast", lambda pilot: None)
    asked = ["", "tiny-1m", "", "log.csv", "when", "ts", "", "none", "none", "cpu", "", "", ""]
    result = made("ours.yaml", *SMALL, answers="\n".join(asked) + "\n")
    assert result.exit_code == 0, result.output
    assert "time of the request: ts, inp, out; none for another log" in result.stderr
    assert "when: no column; allowed: ts, inp, out" in result.stderr
    assert "tokens of the prompt: inp, out; none" in result.stderr
    load = resolve(here / "ours.yaml").pilot.profile_load
    assert (load.trace, load.columns) == (None, {})


def test_what_is_no_model_and_no_text_is_refused_at_its_question(here: Path, monkeypatch) -> None:
    monkeypatch.setattr(new, "_somebody_answers", lambda: True)
    monkeypatch.setattr(new, "_check_and_forecast", lambda pilot: None)
    (here / "folder").mkdir()
    (here / "short.csv").write_text("a,b\n1,2\n")
    asked = ["", "folder", "tiny-1m", "short.csv", "folder", "python", "none", "none", "cpu",
             "", "", ""]  # fmt: skip
    result = made("ours.yaml", *SMALL, answers="\n".join(asked) + "\n")
    assert result.exit_code == 0, result.output
    assert "config.json" in result.stderr and "the folder holds no files" in result.stderr
    assert "short.csv: 1 document(s) with text" in result.stderr
    pilot = resolve(here / "ours.yaml").pilot
    assert (pilot.model.preset, pilot.data.corpus) == ("tiny-1m", "python")


def written(here: Path, **answers) -> Any:
    """The pilot that a draft of the answers resolves to."""
    given = Answers(**{"question": "?", **answers})
    (here / "a.yaml").write_text(draft(here / "a.yaml", given, tuple(PRESETS)))
    return resolve(here / "a.yaml").pilot


BESIDE: dict[str, tuple[Any, str, str]] = {
    "question": ("Why?", "name=other", "tags=[a]"),
    "model": ("tiny-1m", "model.sub_norm=true", "model={sub_norm: true}"),
    "data": ("python", "data.vocab_size=512", "data={vocab_size: 512}"),
    "trace": ("log.csv", "profile_load.window_s=30", "profile_load={window_s: 30}"),
    "columns": ((("time", "ts"),), "profile_load.trace=log.csv", "profile_load={window_s: 30}"),
    "device": ("cpu", "readiness.threads=1", "readiness={threads: 1}"),
    "processes": (2, "train.steps=7", "train={launch: {strategy: fsdp}}"),
    "meters": (("none",), "measure_ab.blocks=6", "measure_ab={meters: {idle_s: 0.5}}"),
    "gates": (("memory_ratio=3",), "report.language=ru", "report={cost: {currency: USD}}"),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("place", [1, 2])
def test_an_option_and_a_set_of_its_section_both_stand(here: Path, name: str, place: int) -> None:
    case = BESIDE[name]
    answers = {name: case[0]}
    with_both, alone = (
        written(here, **answers, fields=fields, given=frozenset(answers))
        for fields in ((case[place],), ())
    )
    decided = {keys for of in answers for keys in DECIDES[of]}
    for keys in decided:
        one, other = with_both, alone
        for key in keys:
            one, other = getattr(one, key), getattr(other, key)
        assert one == other
    top = case[place].partition("=")[0].partition(".")[0]
    assert getattr(with_both, top) != getattr(alone, top)


def test_every_answer_is_tried_beside_a_set() -> None:
    assert {*BESIDE, "extends"} == set(DECIDES)


@pytest.mark.parametrize(
    ("name", "given", "field"),
    [
        ("question", "Why?", "question=What?"),
        ("model", "tiny-1m", "model.checkpoint=hf:a/b"),
        ("model", "tiny-1m", "model={preset: tiny-2m}"),
        ("data", "python", "data.sources=[]"),
        ("trace", "log.csv", "profile_load.trace=null"),
        ("device", "cpu", "readiness=3"),
        ("processes", 2, "train.processes=4"),
        ("meters", ("none",), "measure_ab.meters.csv=log.csv"),
        ("gates", ("memory_ratio=3",), "report.gates=[]"),
        ("extends", "workbench:smoke", "extends=workbench:base"),
    ],
)
def test_a_field_that_is_given_twice_is_refused(here: Path, name: str, given, field: str) -> None:
    answers = {name: given}
    with pytest.raises(ConfigError, match=rf"--set [\s\S]* beside {OPTIONS[name]}"):
        written(here, **answers, fields=(field,), given=frozenset(answers))


def test_a_set_decides_what_no_option_gives(here: Path) -> None:
    (here / "sub").mkdir()
    fields = ("model.preset=tiny-1m", "report.gates=[]", "question=Why?", "name=mine",
              "profile_load.trace=log.csv", "extends=workbench:smoke")  # fmt: skip
    text = draft(here / "sub" / "a.yaml", Answers("?", fields=fields), tuple(PRESETS))
    (here / "sub" / "a.yaml").write_text(text)
    pilot = resolve(here / "sub" / "a.yaml").pilot
    assert text.startswith("# Question: Why?\n")
    assert (pilot.model.preset, pilot.question, pilot.name) == ("tiny-1m", "Why?", "mine")
    assert pilot.report.gates == [] and pilot.train.steps == 24
    assert pilot.profile_load.trace == str(here / "log.csv")  # seen from here


def test_a_small_pilot_keeps_the_values_of_the_one_it_extends(here: Path, monkeypatch) -> None:
    monkeypatch.setattr(new, "_check_and_forecast", lambda pilot: None)
    small = "--extends=workbench:smoke"
    result = made("small.yaml", "--yes", small, "--gate=memory_ratio=3")
    assert result.exit_code == 0, result.output
    smoke, pilot = resolve("workbench:smoke").pilot, resolve(here / "small.yaml").pilot
    assert (pilot.model, pilot.data, pilot.train) == (smoke.model, smoke.data, smoke.train)
    assert len(pilot.report.gates) == len(smoke.report.gates)
    assert {g.at_least for g in pilot.report.gates if g.metric == "memory_ratio"} == {3.0}
    monkeypatch.setattr(new, "_somebody_answers", lambda: True)
    asked = made("asked.yaml", small, answers="\n" * 9)
    assert asked.exit_code == 0, asked.output
    assert "[as in workbench:smoke]" in asked.stderr
    assert resolve(here / "asked.yaml").pilot.train == smoke.train
    for wrong, said in (("smoke", "did you mean workbench:smoke?"), ("workbench:smok", "smoke")):
        with_wrong = made("wrong.yaml", "--yes", f"--extends={wrong}")
        assert said in str(with_wrong.exception) and not (here / "wrong.yaml").exists()


def test_text_that_is_cut_or_too_little_to_judge_is_said(here: Path) -> None:
    folder = here / "text"
    folder.mkdir()
    for i in range(212):
        (folder / f"{i}.txt").write_text(f"document {i} " + "of some words " * 80)
    fields = [f"data.corpus={folder}"]

    def said(*more: str) -> str:
        return "\n".join(text_ahead(resolve("workbench:base", [*fields, *more]).pilot))

    split = read_corpus(Data(corpus=str(folder)), resolve("workbench:base").pilot.seed)
    assert f"{split.parts[0].heldout} documents of 212 will be held out" in said()
    assert "needs 64, so the gate quality_gap_bits_per_byte cannot be decided" in said()
    share = re.search(r"--set (data.holdout_share=\S+),", said())
    assert share is not None and "max_bytes" not in said()
    assert said(share[1]) == ""
    cut = said(share[1], "data.max_bytes=100000")
    assert "data.max_bytes takes 0.1 MB, and text has 0.2:" in cut
    assert ": all of the text and --set data.holdout_share=0.38, or more text, about " in cut
    whole = re.search(r"--set (data.max_bytes=\d+) takes all", cut)
    assert whole is not None and said(share[1], whole[1]) == ""
    assert "8 held-out documents will be judged" in said(share[1], "measure_ab.quality_documents=8")
    assert said("data.corpus=hf:never/asked") == ""


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
