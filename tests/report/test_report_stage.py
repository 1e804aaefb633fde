"""The last stage: tables, verdict, and the gates that end a run with exit code 4."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.errors import GateError
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.report.verdict import caveats
from workbench.runner.pilot_run import raise_failed_gates
from workbench.stages import report
from workbench.stages.context import StageContext
from workbench.wording.text import Texts

PILOT = Pilot(name="taught", question="?")
BROKEN = """
    - {metric: decode_speedup, labels: {source: probe}, at_least: 9.0, on_fail: stop}
    - {metric: memory_ratio, labels: {arm: ternary, source: probe}, at_least: 9.0}
"""


def test_tables_metric_and_verdict_are_recorded(shared_run) -> None:
    record = shared_run.record("report")
    assert set(record.tables) == {"gates", "claims", "cost", "goals", "forecast"}
    assert record.table("gates")["outcome"].tolist() == ["pass"] * 6
    assert record.metric("gates_failed").value == 0
    verdict = record.facts["verdict"]
    assert verdict["decision"] == "go"
    assert record.facts["stopping_gates"] == []
    assert [c["code"] for c in verdict["caveats"]] == [
        "carries.no.capacity", "carries.not_measured.slower", "caveat.trained",
        "caveat.one_seed", "caveat.probe", "caveat.rounded_probe", "caveat.rounded_quality",
        "caveat.rounded_quality", "caveat.training_buys_faster", "caveat.assumed_load",
    ]  # fmt: skip
    assert verdict["caveats"][5]["text"].startswith("INT4 weights need no training.")
    assert "INT8" in verdict["caveats"][6]["text"] and "0.005" in verdict["caveats"][6]["text"]
    assert "INT4" in verdict["caveats"][7]["text"] and "0.03" in verdict["caveats"][7]["text"]


def test_the_verdict_says_for_each_arm_whether_it_carries_the_load(make_run) -> None:
    records = make_run().records()
    for answer, why in (
        ("no", "capacity"),
        ("no", "missed"),
        ("yes", "met"),
        *(("not_measured", why) for why in ("slower", "cut", "no_target", "late", "open")),
    ):
        records["deploy_rollback"].facts["carries"] = {
            "hybrid": {"answer": answer, "why": why, "share": 0.31}
        }
        found = caveats(records, PILOT)[0]
        for language, share in (("en", "0.31"), ("ru", "0,31")):
            text = Texts(language)(found.code, **found.values)
            assert share in text and "hybrid" in text and "{" not in text


@pytest.mark.parametrize(
    ("lo", "hi", "pace", "delay_ms", "code"),
    [
        (0.96, 1.0, 1.0, 0.4, "carries.yes.met"),
        (0.93, 1.0, 1.0, 0.4, "carries.not_measured.open"),
        (0.80, 0.9, 1.0, 0.4, "carries.no.missed"),
        (0.96, 1.0, 0.5, 0.4, "carries.not_measured.slower"),
        (0.96, 1.0, 1.0, 40.0, "carries.not_measured.late"),
    ],
)
def test_the_blocks_of_the_load_answer_for_their_arms_too(lo, hi, pace, delay_ms, code) -> None:
    """Full precision was replayed in both stages: what was measured there stands."""
    record = StageRecord("measure_ab", Path("nowhere"))
    load = {"source": "load"}
    record.measured("replay_speedup", pace, "", "", basis="exact", **load)
    record.measured("dispatch_delay_ms", delay_ms, "ms", "", quantile="p99", **load)
    for arm in ("full_precision", "ternary"):
        of = {"arm": arm, "class": "batch", **load}
        record.measured("slo_met_share", (lo + hi) / 2, "", "", n=300, lo=lo, hi=hi, **of)
    replayed = StageRecord("deploy_rollback", Path("nowhere"))
    replayed.facts["carries"] = {
        "full_precision": {"answer": "not_measured", "why": "open", "share": 1.0},
        "hybrid": {"answer": "yes", "why": "met", "share": 1.0},
    }
    found = caveats({"measure_ab": record, "deploy_rollback": replayed}, PILOT)
    said = {s.values["arm"]: s.code for s in found if s.code.startswith("carries.")}
    assert said["ternary"] == code and said["hybrid"] == "carries.yes.met"
    decided = "not_measured" not in code
    assert said["full_precision"] == (code if decided else "carries.not_measured.open")


def test_no_gain_in_speed_over_int8_is_not_called_one(make_run) -> None:
    records = make_run().records()
    metrics = records["readiness"].metrics
    for i, metric in enumerate(metrics):
        if metric.name == "decode_speedup_over_int4":
            metrics[i] = replace(metric, value=1.02, lo=0.9, hi=1.1)
    (found,) = [s for s in caveats(records, PILOT) if s.code.startswith("caveat.rounded_probe")]
    assert found.code == "caveat.rounded_probe_no_faster" and found.values["kind"] == "INT4"
    for language in ("en", "ru"):
        assert "{" not in Texts(language)(found.code, **found.values)


def test_arms_on_unlike_units_are_not_called_a_fair_comparison(make_run) -> None:
    records = make_run().records()
    assert not [s for s in caveats(records, PILOT) if s.code == "caveat.uneven_units"]
    records["measure_ab"].facts["uneven_units"] = "full_precision: vectors; ternary: amx_int8"
    assert [s.code for s in caveats(records, PILOT)].count("caveat.uneven_units") == 1


def test_beside_a_ready_model_no_words_say_that_training_buys_anything(make_run) -> None:
    records = make_run().records()
    records["train_qat"].facts["ready_ternary"] = {"path": "a", "format": "GGUF file (Q2_0)"}
    (found,) = [s for s in caveats(records, PILOT) if s.code.startswith("caveat.rounded_probe")]
    assert found.code == "caveat.rounded_probe_ready"
    for sentence in caveats(records, PILOT):
        assert "training buys" not in Texts()(sentence.code, **sentence.values)
        assert "даёт обучение" not in Texts("ru")(sentence.code, **sentence.values)


def test_without_int8_and_int4_figures_nothing_is_said_of_them(make_run) -> None:
    records = make_run().records()
    for record in records.values():
        record.metrics[:] = [
            m
            for m in record.metrics
            if "int" not in m.name and m.labels.get("arm") not in ("int8", "int4")
        ]
    assert not [s for s in caveats(records, PILOT) if "caveat.rounded" in s.code]


def test_a_gap_with_a_teacher_behind_it_says_so(make_run) -> None:
    run = make_run()
    records = run.records()
    records["train_qat"].facts["distillation"] = {"teacher": "the full-precision arm"}
    codes = [sentence.code for sentence in caveats(records, PILOT)]
    assert codes[2:5] == ["caveat.trained", "caveat.one_seed", "caveat.taught"]


def test_a_broken_gate_that_must_hold_stops_the_run(make_run) -> None:
    run = make_run(gates=BROKEN)
    record = run.record("report")
    assert record.facts["verdict"]["decision"] == "no go"
    assert record.metric("gates_failed").value == 2
    (stopping,) = record.facts["stopping_gates"]
    assert stopping.startswith("Decode speed-up (ternary, probe, bitnet-700m):")
    with pytest.raises(GateError, match="allowed at least 9") as caught:
        raise_failed_gates(run)
    assert caught.value.exit_code == 4


def test_a_gate_on_the_fleet_is_judged_and_one_on_the_gates_refused(tmp_path, timed_load) -> None:
    gates = [{"metric": "accelerators_needed", "labels": {"arm": "ternary"}, "at_most": 5}]
    settings = {"cost": {"accelerators": 8}, "gates": gates}
    pilot = Pilot(
        name="fleet",
        question="?",
        report=settings,
        profile_load={"interactive_slo": {"tpot_ms": 100}},
    )
    # 0.4 s of a machine for 0.9 s: 3.6 of 8, whole 4; a token every 8 x 0.9 s / 100 = 72 ms.
    decode = {("full_precision", 8): 4.0, ("ternary", 8): 2.0}
    records = timed_load(tmp_path, {"full_precision": 0.5, "ternary": 0.2}, decode)
    record = StageRecord("report", tmp_path)
    progress = Progress(tmp_path / "events.jsonl", "report")
    report.run(StageContext(pilot, record, progress, records))
    assert record.table("gates")["outcome"].tolist() == ["pass"]
    assert report.check(pilot) == []
    gates = [{"metric": "gates_failed", "at_most": 0}]
    (problem,) = report.check(Pilot(name="fleet", question="?", report={"gates": gates}))
    assert "report.gates.0.metric: got 'gates_failed'" in problem


def test_the_stage_and_the_page_need_no_plotly_and_no_jupyter() -> None:
    code = (
        "import sys; import workbench.stages.report, workbench.report.html;"
        "bad = {'plotly', 'IPython', 'papermill', 'nbformat'} & set(sys.modules);"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
