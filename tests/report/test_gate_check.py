"""What no figure could answer is refused before the run, by `show` and by `run` alike."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from workbench import cli
from workbench.errors import ConfigError
from workbench.pilot.resolve import resolve
from workbench.pilot.spec import Pilot
from workbench.report.gate_check import fits, gate_problems
from workbench.roadmap import STAGES
from workbench.runner.checks import check_pilot
from workbench.wording.vocabulary import FIGURES

SHIPPED = sorted((Path(__file__).parents[2] / "pilots").glob("*.yaml"))


def problems(metric: str, labels: dict[str, str], **sections) -> list[str]:
    gate = {"metric": metric, "labels": labels, "at_most": 1.0}
    return gate_problems(Pilot(name="a", question="?", report={"gates": [gate]}, **sections))


@pytest.mark.parametrize(
    ("metric", "labels", "says"),
    [
        ("memory_ration", {}, "report.gates.0.metric: got 'memory_ration'; did you mean memory_ra"),
        ("gates_failed", {}, "report.gates.0.metric: got 'gates_failed'"),
        ("bits_per_byte", {"arm": "ternery"}, ".labels.arm: got 'ternery'; did you mean ternary?"),
        ("bits_per_byte", {"amr": "ternary"}, ".amr: no label of bits_per_byte; did you mean arm?"),
        ("lost_requests", {"arm": "hybrid"}, ".arm: no label of lost_requests; it has no labels"),
        ("speedup", {"arm": "full_precision"}, "got 'full_precision'; allowed: ternary, post_trai"),
        ("speedup", {"class": "interactive_7"}, "allowed: interactive_1, interactive_512"),
        ("throughput_ratio", {"batch": "9"}, "got '9'; allowed: 1, 4, 8"),
        ("decode_speedup", {"shape": "bitnet-7b"}, "got 'bitnet-7b'; did you mean bitnet-3b?"),
        ("read_bandwidth_gbps", {"threads": "two"}, "got 'two'; allowed: a number"),
        (
            "decode_tokens_per_s",
            {"batch": "8", "source": "probe"},
            "labels: no decode_tokens_per_s has batch=8, source=probe together; allowed: arm, sour",
        ),
    ],
)
def test_a_slip_of_the_pen_is_named(metric: str, labels: dict[str, str], says: str) -> None:
    (problem,) = problems(metric, labels)
    assert says in problem


def test_what_the_pilot_asks_for_is_what_a_gate_may_ask_for() -> None:
    gate = ("speedup", {"class": "interactive_7", "arm": "int8"})
    assert problems(*gate, measure_ab={"interactive_output_tokens": [7]}) == []
    (absent,) = problems(
        *gate, measure_ab={"interactive_output_tokens": [7], "arms": ["full_precision", "ternary"]}
    )
    assert "labels.arm: got 'int8'; allowed: ternary" in absent
    assert problems("read_bandwidth_gbps", {"threads": "2"}) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_gates_of_shipped_pilots_can_be_answered(path: Path) -> None:
    fetched = [f"model.checkpoint={path.parent}"] if path.stem == "smollm2" else []
    assert gate_problems(resolve(path, fetched).pilot) == []


def test_every_figure_of_a_run_has_labels_that_the_list_knows(shared_run) -> None:
    pilot = shared_run.resolved().pilot
    for name, record in shared_run.records().items():
        for metric in record.metrics:
            assert metric.name in FIGURES, f"{name}: {metric.name}"
            assert fits(metric.labels, metric.name, pilot), f"{name}: {metric}"


@pytest.fixture
def without_models(monkeypatch):
    """The checks of the stages that need torch are not what is tested here."""
    for name in set(STAGES) - {"report"}:
        monkeypatch.setitem(sys.modules, f"workbench.stages.{name}", ModuleType(name))


def pilot_file(folder: Path, gates: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(f"extends: workbench:base\nname: own\nreport:\n  gates:\n{gates}")
    return path


@pytest.mark.parametrize("command", ["show", "run"])
def test_show_and_run_refuse_the_same_with_its_line(
    tmp_path, monkeypatch, capsys, without_models, command: str
) -> None:
    path = pilot_file(
        tmp_path,
        "  - metric: lost_requests\n    at_most: 0\n"
        "  - metric: bits_per_byte\n    labels:\n      source: trained\n      arm: ternery\n"
        "    at_most: 2.0\n",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["workbench", command, path.name])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "own.yaml:10: report.gates.1.labels.arm: got 'ternery'; did you mean ternary" in said.err
    assert ("train.lr" in said.out) == (command == "show")
    assert not (tmp_path / "runs").exists()


def test_a_list_that_replaces_another_keeps_none_of_its_places(tmp_path, without_models) -> None:
    path = pilot_file(tmp_path, "  - {metric: lost_requests, at_most: 0, labels: {arm: hybrid}}\n")
    with pytest.raises(ConfigError, match=r"own\.yaml:5: report\.gates\.0\.labels\.arm"):
        check_pilot(resolve(path))
    given = "report.gates=[{metric: lost_requests, at_most: 0, labels: {arm: hybrid}}]"
    with pytest.raises(ConfigError, match=r"^--set report\.gates=.*: report\.gates\.0\.labels"):
        check_pilot(resolve(path, [given]))


def test_a_gate_on_own_prompts_or_tasks_needs_their_files() -> None:
    prompts, tasks = {"file": "own.jsonl"}, {"tickets": {"file": "own.jsonl"}}
    (problem,) = problems("accepted_share", {"arm": "ternary"})
    assert "needs a file of prompts: prompts: {file: ...}" in problem
    assert problems("accepted_share", {"arm": "ternary"}, prompts=prompts) == []
    (problem,) = problems("task_accuracy", {})
    assert "needs a file of questions" in problem
    assert problems("task_accuracy", {"task": "tickets"}, tasks=tasks) == []
    (problem,) = problems("task_accuracy", {"task": "ticket"}, tasks=tasks)
    assert "got 'ticket'; did you mean tickets?" in problem
    # What the others are held against is held against nothing.
    (problem,) = problems("kl_nats_per_token", {"arm": "full_precision"}, prompts=prompts)
    assert "got 'full_precision'; allowed: ternary" in problem
    today = {"measure_ab": {"arms": ["full_precision", "ternary", "checkpoint"]}}
    assert not problems("kl_nats_per_token", {"arm": "full_precision"}, prompts=prompts, **today)
