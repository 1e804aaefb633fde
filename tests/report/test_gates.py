"""Gates: the interval decides, a value alone does not, every matching figure is held."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.measure.statistics import count, quantile
from workbench.pilot.sections.report import Gate
from workbench.pilot.spec import Pilot
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.gates import GateResult, evaluate, gates_frame
from workbench.report.verdict import decide
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
        ({"at_least": 1.5}, 1.45, 1.75, "inconclusive", 1.45),
        ({"at_least": 1.7}, 1.45, 1.75, "inconclusive", 1.45),
        ({"at_least": 1.8}, 1.45, 1.75, "fail", 1.75),
        ({"at_most": 1.7}, 1.55, 1.65, "pass", 1.65),
        ({"at_most": 1.7}, 1.55, 1.75, "inconclusive", 1.75),
        ({"at_most": 1.5}, 1.55, 1.65, "fail", 1.55),
        ({"at_least": 1.6}, None, None, "inconclusive", None),
        ({"at_least": 1.5}, None, 1.7, "inconclusive", None),
        ({"at_least": 1.8}, None, 1.7, "fail", 1.7),
    ],
)
def test_the_end_of_the_interval_decides(gate, lo, hi, outcome, decider) -> None:
    (result,) = evaluate([Gate(metric="speedup", **gate)], records(lo=lo, hi=hi))
    assert (result.outcome, result.decider) == (outcome, decider)


def one(metric: Metric, **rule) -> GateResult:
    record = StageRecord("measure_ab", Path("nowhere"))
    record.add(metric)
    (result,) = evaluate([Gate(metric=metric.name, **rule)], {"measure_ab": record})
    return result


def test_what_crosses_is_inconclusive_and_what_is_excluded_is_no_go() -> None:
    crosses, excluded = (
        evaluate([Gate(metric="speedup", at_least=limit)], records(lo=1.4, hi=1.8))[0]
        for limit in (1.5, 1.9)
    )
    assert decide([crosses], {}, PILOT).decision == "inconclusive"
    assert decide([excluded], {}, PILOT).decision == "no go"


def test_an_exact_figure_decides_by_its_value() -> None:
    memory = Metric("memory_ratio", 2.5, "x", "bytes over bytes", "derived", basis="exact")
    assert [one(memory, at_least=limit).outcome for limit in (2.5, 2.6)] == ["pass", "fail"]


def test_of_a_count_none_in_n_keeps_nought_and_is_said_with_n() -> None:
    none, some = (count(k, 41).metric("lost_requests", "requests", "seen") for k in (0, 1))
    kept = one(none, at_most=0)
    assert (kept.outcome, kept.decider, kept.reason) == ("pass", 0.0, "none of 41")
    assert one(some, at_most=0).outcome == "fail"
    # No more than 1 of 41 is another matter: that needs the interval, which reaches to 3.6.
    assert one(none, at_most=1).outcome == "inconclusive"
    assert (
        one(count(0, 500).metric("lost_requests", "requests", "seen"), at_most=4).outcome == "pass"
    )


def test_an_estimate_without_an_interval_says_the_stage_s_reason() -> None:
    tail = quantile([300.0] * 119 + [500.0], 0.99).metric("ttft_ms", "ms", "clock")
    result = one(tail, at_most=440.0)
    assert (result.outcome, result.decider) == ("inconclusive", None)
    assert result.reason == "no interval: 120 observations, p99 needs 368"
    (reason, _) = decide([result], {}, PILOT).to_json()["reasons"]
    assert "p99 needs 368" in reason["text"]


def test_one_of_five_gates_that_fails_by_chance_is_no_no_go() -> None:
    """Each fails in 2.5 % of runs at its limit, so one of five in up to 12 %."""
    gates = [Gate(metric="speedup", at_least=limit) for limit in (1.71, 1, 1, 1, 1)]
    narrowly = evaluate(gates, records(lo=1.5, hi=1.7))
    assert [r.outcome for r in narrowly] == ["fail", "pass", "pass", "pass", "pass"]
    assert narrowly[0].chance
    assert decide(narrowly, {}, PILOT).decision == "inconclusive"
    gates[0] = Gate(metric="speedup", at_least=1.9)
    assert decide(evaluate(gates, records(lo=1.5, hi=1.7)), {}, PILOT).decision == "no go"


@pytest.mark.parametrize(
    ("limit", "effect", "outcome"),
    [
        (1.05, 0.03, "pass"),  # a margin of 5 %, seen from 3 % on
        (1.05, -0.08, "inconclusive"),  # not seen
        (0.9, 0.08, "pass"),
        (1.5, 0.08, "fail"),
        (1.01, 0.04, "pass"),  # 9 % beyond the limit is more than could be missed
    ],
)
def test_a_session_that_could_not_see_the_margin_says_so_first(limit, effect, outcome) -> None:
    record = StageRecord("measure_ab", Path("nowhere"))
    labels = {"class": "interactive_1"}
    record.measured("speedup", 1.12, "x", "clock", n=9, lo=1.1, hi=1.14, arm="ternary", **labels)
    record.measured("smallest_visible_effect", effect, "share", "A/A", n=9, **labels)
    found = {"measure_ab": record}
    gates = [Gate(metric="speedup", at_least=limit), Gate(metric="layers", at_least=1)]
    results = evaluate(gates, found)
    assert results[0].outcome == outcome
    if outcome == "inconclusive":
        (first, *_) = decide(results, found, PILOT).to_json()["reasons"]
        assert first["text"].startswith("inconclusive: machine too noisy")


@pytest.mark.parametrize(("effect", "outcome"), [(0.03, "pass"), (0.08, "inconclusive")])
def test_a_ratio_under_the_load_is_held_against_its_own_visible_effect(effect, outcome) -> None:
    record = StageRecord("measure_ab", Path("nowhere"))
    labels = {"arm": "ternary", "quantile": "p50", "source": "load"}
    record.measured("ttft_speedup", 1.12, "x", "clock", n=9, lo=1.1, hi=1.14, **labels)
    other = {**labels, "quantile": "p95"}
    for own, seen in ((labels, effect), (other, 0.5)):
        more = {"n": 9, "speedup": "ttft_speedup", **own}
        record.measured("smallest_visible_effect", seen, "share", "scatter", **more)
    gate = Gate(metric="ttft_speedup", labels={"source": "load"}, at_least=1.05)
    (result,) = results = evaluate([gate], {"measure_ab": record})
    assert result.outcome == outcome
    if outcome == "inconclusive":
        (first, *_) = decide(results, {"measure_ab": record}, PILOT).to_json()["reasons"]
        assert "scatter of that ratio over the blocks of the load" in first["text"]
        assert first["text"].startswith("inconclusive: machine too noisy")


@pytest.mark.parametrize("on_fail", ["stop", "warn"])
def test_what_was_not_measured_is_not_held(on_fail: str) -> None:
    found = records()
    found["measure_ab"].missing("energy_j_per_token", "J", "no meter", arm="ternary")
    gates = [Gate(metric=m, at_most=1.0, on_fail=on_fail) for m in ("energy_j_per_token", "layers")]
    with_reason, absent = evaluate(gates, found)
    assert with_reason.outcome == absent.outcome == "inconclusive"
    assert with_reason.reason == "no meter"
    assert "no stage" in absent.reason
    assert with_reason.stops == (on_fail == "stop")
    assert decide([with_reason], found, PILOT).decision == "inconclusive"


def test_a_gate_holds_for_every_figure_that_its_labels_fit() -> None:
    found = records(lo=1.55, hi=1.65)
    found["measure_ab"].measured("speedup", 1.1, "x", "clock", lo=1, hi=1.2, arm="post_training")
    results = evaluate([Gate(metric="speedup", at_least=1.5)], found)
    assert [(r.labels["arm"], r.outcome) for r in results] == [
        ("ternary", "pass"),
        ("post_training", "fail"),
    ]
    (one,) = evaluate([Gate(metric="speedup", labels={"arm": "ternary"}, at_least=1.5)], found)
    assert one.outcome == "pass"


def test_all_gates_held_is_go_and_none_declared_is_inconclusive() -> None:
    held = evaluate([Gate(metric="speedup", at_least=1.5)], records(lo=1.55, hi=1.65))
    assert decide(held, {}, PILOT).decision == "go"
    assert decide([], {}, PILOT).decision == "inconclusive"


def test_a_sentence_names_figure_number_and_limit() -> None:
    (result,) = evaluate([Gate(metric="speedup", at_least=2.0)], records(lo=1.5, hi=1.7))
    sentence = result.sentence(Texts())
    assert sentence == (
        "Speed-up against full precision (ternary): 1.6 ×, 1.7 by the end of its interval that "
        "decides, allowed at least 2"
    )


def test_labels_survive_the_table() -> None:
    labels = {"source": "probe", "arm": "ternary"}
    assert labels_of(label_text(labels)) == labels
    frame = gates_frame(evaluate([Gate(metric="speedup", at_least=1.5)], records()))
    assert frame.loc[0, "labels"] == "arm=ternary"
    assert list(gates_frame([]).columns) == list(frame.columns)
