"""What training buys: the gain over the best arm that needs none and keeps the quality gate."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.pilot.sections.report import Gate
from workbench.pilot.spec import Pilot
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.training_gain import training_gain
from workbench.report.verdict import caveats
from workbench.wording.text import Texts

GATE = {"metric": "quality_gap_bits_per_byte", "labels": {"arm": "ternary", "source": "trained"},
        "at_most": 0.1}  # fmt: skip
ARMS = {
    # memory in MB, gap and its upper end, speedup of the longest answer
    "full_precision": (100.0, None, None, None),
    "checkpoint": (100.0, -0.01, 0.01, 1.0),
    "int8": (60.0, 0.02, 0.05, 1.5),
    "post_training": (20.0, 3.0, 3.2, 2.4),
    "ternary": (25.0, 0.05, 0.08, 2.1),
}


def records(folder: Path, facts: dict | None = None, **changed: tuple) -> dict[str, StageRecord]:
    record = StageRecord("measure_ab", folder)
    for arm, (memory, gap, hi, speed) in (ARMS | changed).items():
        labels = {"arm": arm, "source": "trained"}
        record.add(Metric("model_memory_mb", memory, "MB", "", labels=labels, basis="exact"))
        if gap is not None:
            record.add(Metric("quality_gap_bits_per_byte", gap, "bits/byte", "", n=9,
                              lo=gap - (hi - gap), hi=hi, labels=labels))  # fmt: skip
        for count, of in (("1", 1.1), ("64", speed)):
            if speed is not None:
                of_class = labels | {"class": f"interactive_{count}"}
                record.add(Metric("speedup", of, "x", "", n=9, lo=0.98 * of, hi=1.02 * of,
                                  labels=of_class))  # fmt: skip
    return {"measure_ab": record, "train_qat": StageRecord("train_qat", folder, facts=facts or {})}


def test_the_smallest_that_keeps_the_gate_is_compared_with(tmp_path: Path) -> None:
    gain = training_gain(records(tmp_path), [Gate(**GATE)])
    assert gain is not None and gain.kept
    assert (gain.smallest, gain.quickest) == ("int8", "int8"), "post-training ternary lost 3 bits"
    assert gain.memory.value == pytest.approx(60 / 25) and gain.memory.basis == "exact"
    assert gain.latency.value == pytest.approx(2.1 / 1.5)
    assert gain.latency.lo == pytest.approx(2.1 * 0.98 / (1.5 * 1.02))
    assert "interactive_64" in gain.latency.how


def test_an_arm_whose_interval_crosses_the_margin_does_not_keep_it(tmp_path: Path) -> None:
    gain = training_gain(records(tmp_path, int8=(60.0, 0.02, 0.15, 1.5)), [Gate(**GATE)])
    assert gain is not None and gain.smallest == "checkpoint"
    assert gain.memory.value == 4.0


def test_four_bits_that_keep_the_gate_are_what_ternary_has_to_beat(tmp_path: Path) -> None:
    gain = training_gain(records(tmp_path, int4=(34.0, 0.04, 0.09, 1.8)), [Gate(**GATE)])
    assert gain is not None and (gain.smallest, gain.quickest) == ("int4", "int4")
    assert gain.memory.value == pytest.approx(34 / 25)
    lost = training_gain(records(tmp_path, int4=(34.0, 0.2, 0.3, 1.8)), [Gate(**GATE)])
    assert lost is not None and lost.smallest == "int8", "four bits that lose too much are no rival"


def test_where_none_keeps_it_the_figure_is_missing_and_said(tmp_path: Path) -> None:
    lost = {arm: (*ARMS[arm][:1], 1.0, 1.1, 1.5) for arm in ("checkpoint", "int8")}
    found = records(tmp_path, **lost)
    gain = training_gain(found, [Gate(**GATE)])
    assert gain is not None and gain.smallest is None
    assert gain.memory.value is None and "no arm without training keeps" in gain.memory.reason
    assert "caveat.no_untrained_keeps" in codes(found)
    crossing = {arm: (*ARMS[arm][:1], 0.01, 1.1, 1.5) for arm in ("checkpoint", "int8")}
    assert "caveat.untrained_undecided" in codes(records(tmp_path, **crossing))


def codes(found: dict[str, StageRecord]) -> list[str]:
    pilot = Pilot(name="a", question="?", report={"gates": [GATE]})
    sentences = [s for s in caveats(found, pilot) if "train" in s.code]
    for sentence in sentences:
        for language in ("en", "ru"):
            assert "{" not in Texts(language)(sentence.code, **sentence.values)
    return [sentence.code for sentence in sentences]


def test_the_verdict_says_it_in_a_sentence(tmp_path: Path) -> None:
    assert "caveat.training_buys_faster" in codes(records(tmp_path))
    said = [
        s
        for s in caveats(records(tmp_path), Pilot(name="a", question="?", report={"gates": [GATE]}))
    ]
    (bought,) = [s for s in said if s.code == "caveat.training_buys_faster"]
    assert "as those of INT8 without training" in Texts()(bought.code, **bought.values)
    slow = records(tmp_path, ternary=(25.0, 0.05, 0.08, 1.4))
    assert "caveat.training_buys" in codes(slow)
    lost = records(tmp_path, ternary=(25.0, 0.4, 0.5, 2.1))
    assert "caveat.training_buys_nothing_yet" in codes(lost)


def test_beside_a_ready_model_nothing_was_trained(tmp_path: Path) -> None:
    ready = {"ready_ternary": {"path": "a", "format": "GGUF file (Q2_0)"}}
    assert training_gain(records(tmp_path, ready), [Gate(**GATE)]) is None
    assert codes(records(tmp_path, ready)) == []


def test_without_a_gate_of_quality_nothing_is_claimed(tmp_path: Path) -> None:
    assert training_gain(records(tmp_path), []) is None
    assert training_gain({}, [Gate(**GATE)]) is None
