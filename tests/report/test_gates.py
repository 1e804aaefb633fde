"""Gates: the interval decides, absence is not success, every matching figure is held."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.pilot.sections.report import Gate
from workbench.pilot.spec import Pilot
from workbench.records.stage_record import StageRecord
from workbench.report.gates import evaluate, gates_frame
from workbench.report.verdict import decide
from workbench.stages import report as stage
from workbench.wording.labels import label_text, labels_of
from workbench.wording.text import Texts

PILOT = Pilot(name="trial", question="does it hold?")


def records(**options) -> dict[str, StageRecord]:
    record = StageRecord("measure_ab", Path("nowhere"))
    record.measured("speedup", 1.6, "x", "clock", n=8, arm="ternary", **options)
    return {"measure_ab": record}


@pytest.mark.parametrize(
    ("gate", "lo", "hi", "outcome", "decider"),
    [
        ({"at_least": 1.5}, 1.55, 1.65, "pass", 1.55),
        ({"at_least": 1.5}, 1.45, 1.75, "fail", 1.45),
        ({"at_most": 1.7}, 1.55, 1.65, "pass", 1.65),
        ({"at_most": 1.7}, 1.55, 1.75, "fail", 1.75),
        ({"at_most": 1.5}, 1.55, 1.65, "fail", 1.65),
        ({"at_least": 1.6}, None, None, "pass", 1.6),
        ({"at_least": 1.5}, None, 1.7, "pass", 1.6),
    ],
)
def test_the_end_of_the_interval_decides(gate, lo, hi, outcome, decider) -> None:
    (result,) = evaluate([Gate(metric="speedup", **gate)], records(lo=lo, hi=hi))
    assert (result.outcome, result.decider) == (outcome, decider)


def test_a_value_that_holds_alone_is_told_from_one_that_does_not() -> None:
    uncertain, broken = (
        evaluate([Gate(metric="speedup", at_least=limit)], records(lo=1.4, hi=1.8))[0]
        for limit in (1.5, 1.7)
    )
    assert uncertain.only_uncertain and not broken.only_uncertain
    assert decide([uncertain], {}, PILOT).decision == "undecided"
    assert decide([broken], {}, PILOT).decision == "no go"


@pytest.mark.parametrize("on_fail", ["stop", "warn"])
def test_what_was_not_measured_is_not_held(on_fail: str) -> None:
    found = records()
    found["measure_ab"].missing("energy_j_per_token", "J", "no meter", arm="ternary")
    gates = [Gate(metric=m, at_most=1.0, on_fail=on_fail) for m in ("energy_j_per_token", "layers")]
    with_reason, absent = evaluate(gates, found)
    assert with_reason.outcome == absent.outcome == "not measured"
    assert with_reason.reason == "no meter"
    assert "no stage" in absent.reason
    assert with_reason.stops == (on_fail == "stop")
    assert decide([with_reason], found, PILOT).decision == "undecided"


def test_a_gate_holds_for_every_figure_that_its_labels_fit() -> None:
    found = records()
    found["measure_ab"].measured("speedup", 1.1, "x", "clock", arm="post_training")
    results = evaluate([Gate(metric="speedup", at_least=1.5)], found)
    assert [(r.labels["arm"], r.outcome) for r in results] == [
        ("ternary", "pass"),
        ("post_training", "fail"),
    ]
    (one,) = evaluate([Gate(metric="speedup", labels={"arm": "ternary"}, at_least=1.5)], found)
    assert one.outcome == "pass"


def test_all_gates_held_is_go_and_none_declared_is_undecided() -> None:
    held = evaluate([Gate(metric="speedup", at_least=1.5)], records())
    assert decide(held, {}, PILOT).decision == "go"
    assert decide([], {}, PILOT).decision == "undecided"


def test_a_sentence_names_figure_number_and_limit() -> None:
    (result,) = evaluate([Gate(metric="speedup", at_least=2.0)], records(lo=1.5, hi=1.7))
    sentence = result.sentence(Texts())
    assert sentence == "Speed-up against full precision (ternary): 1.5 ×, allowed at least 2"


def test_labels_survive_the_table() -> None:
    labels = {"source": "probe", "arm": "ternary"}
    assert labels_of(label_text(labels)) == labels
    frame = gates_frame(evaluate([Gate(metric="speedup", at_least=1.5)], records()))
    assert frame.loc[0, "labels"] == "arm=ternary"
    assert list(gates_frame([]).columns) == list(frame.columns)


def test_a_gate_about_an_unknown_figure_is_found_before_the_run() -> None:
    pilot = Pilot.model_validate(
        {
            "name": "trial",
            "question": "?",
            "report": {"gates": [{"metric": "memory_ration", "at_least": 2.0}]},
        }
    )
    (problem,) = stage.check(pilot)
    assert "report.gates[0].metric" in problem and "did you mean memory_ratio?" in problem
    assert stage.check(PILOT) == []
