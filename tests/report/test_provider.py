"""``pilots/provider_8x.yaml``, the literature's mini-case: its gates, and what is left of it."""

from __future__ import annotations

import pytest

from workbench.paths import PROJECT
from workbench.pilot.resolve import resolve
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.report.economy_views import economy_view
from workbench.stages import report
from workbench.stages.context import StageContext
from workbench.wording.text import Texts

PREFILL = {"full_precision": 0.5, "ternary": 0.4}
PROVIDER = PROJECT / "pilots" / "provider_8x.yaml"


def judged(folder, records, speedup: float) -> StageRecord:
    """The report's record of a run of the pilot with these measurements."""
    records["measure_ab"].measured(
        "e2e_speedup", speedup, "x", "of the same requests", n=200, lo=0.97 * speedup,
        hi=1.03 * speedup, arm="ternary", source="load", quantile="p50",
    )  # fmt: skip
    record = StageRecord("report", folder)
    progress = Progress(folder / "events.jsonl", "report")
    report.run(StageContext(resolve(PROVIDER).pilot, record, progress, records))
    return record


def outcomes(record: StageRecord) -> dict[str, str]:
    gates = record.table("gates")
    return dict(zip(gates["metric"], gates["outcome"], strict=True))


@pytest.mark.parametrize(
    ("decode_ms", "speedup", "fluid", "whole", "answers"),
    [(1.5, 2.6, 8 * 0.55 / 0.9, 5, "pass"), (3.0, 1.8, 8 * 0.7 / 0.9, 7, "fail")],
)
def test_the_promise_is_two_gates_and_its_rest_is_whole(
    tmp_path, timed_load, decode_ms, speedup, fluid, whole, answers
) -> None:
    """Of 1,000 prompt and 100 output tokens full precision takes 0.5 + 0.4 = 0.9 s. Decode at 1.5
    ms: 0.4 + 0.15 = 0.55 s, 4.9 accelerators, five whole; at 3.0 ms 0.7 s, 6.2 and seven. Promised
    are 5.6, six whole; either way the chassis of eight stays: one server of one."""
    decode = {("full_precision", 8): 4.0, ("ternary", 8): decode_ms}
    record = judged(tmp_path, timed_load(tmp_path, PREFILL, decode), speedup)
    found = outcomes(record)
    for name in ("accelerators_needed_fluid", "accelerators_needed", "e2e_speedup"):
        assert found[name] == answers, name
    needed = record.metric("accelerators_needed_fluid", arm="ternary", source="trained", batch="8")
    assert needed.value == pytest.approx(fluid)
    goals = {row["what"]: row for row in record.table("goals").to_dict("records")}
    assert (goals["accelerators_fluid"]["needed"], goals["accelerators"]["needed"]) == (5.6, 6)
    assert (goals["accelerators"]["got"], goals["servers"]["got"]) == (whole, 1)
    assert "today 1, so 0 of them would go" in goals["servers"]["how"]
    assert goals["latency_under_load"]["needed"] == 2.4
    assert record.metric("servers_freed", arm="ternary").value == 0
    # No power was declared or metered: the fleet stands, and no cost is invented.
    assert "no power is declared" in record.metric("cost_per_year", arm="ternary").reason


def test_a_processor_says_so_and_leaves_the_arithmetic(tmp_path, timed_load) -> None:
    """What 30 % of eight is worth whole needs no accelerator to be said; what a processor measured
    of the latency is called a processor's."""
    decode = {("full_precision", 8): 4.0, ("ternary", 8): 1.5}
    record = judged(tmp_path, timed_load(tmp_path, PREFILL, decode, "cpu"), 2.6)
    found = outcomes(record)
    assert found["accelerators_needed_fluid"] == found["accelerators_needed"] == "inconclusive"
    reasons = record.table("gates").set_index("metric")["reason"]
    assert "says nothing of accelerators" in reasons["accelerators_needed"]
    assert record.facts["verdict"]["decision"] == "inconclusive"
    for language in ("en", "ru"):
        view = economy_view(record, Texts(language))
        assert "says nothing of accelerators" in view["reason"]
        rows = {row["what"]: row for row in view["goals"]}
        assert len(rows) == 6
    goals = {row["what"]: row for row in record.table("goals").to_dict("records")}
    for what, needed in (("machine_time", 0.7), ("accelerators_fluid", 5.6), ("accelerators", 6),
                         ("servers", 1)):  # fmt: skip
        assert goals[what]["needed"] == pytest.approx(needed)
        assert goals[what]["outcome"] == "not measured"
    assert "0 of them would go" in goals["servers"]["how"]
    assert goals["latency_under_load"]["how"].startswith("on a processor, which says nothing")
