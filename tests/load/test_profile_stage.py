import pytest

from workbench.errors import ConfigError
from workbench.load.profile import LoadProfile
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages import profile_load
from workbench.stages.context import StageContext


def finished(tmp_path, **section) -> StageRecord:
    pilot = Pilot.model_validate(
        {"name": "test", "question": "does it profile?", "profile_load": section}
    )
    record = StageRecord("profile_load", tmp_path / "stage")
    progress = Progress(tmp_path / "events.jsonl", "profile_load")
    profile_load.run(StageContext(pilot, record, progress, {}))
    record.save()
    return StageRecord.load(record.folder)


def test_a_declared_load_is_recorded_as_assumed_without_intervals(tmp_path):
    record = finished(tmp_path)
    assert {metric.kind for metric in record.metrics} == {"assumed"}
    assert all(metric.lo is None for metric in record.metrics)
    assert record.metric("prompt_tokens", quantile="p50").value == pytest.approx(512, rel=0.15)
    assert record.metric("class_share", **{"class": "batch"}).value == pytest.approx(0.2, abs=0.06)
    assert "declared" in record.notes[0]


def test_a_trace_is_recorded_as_measured_with_its_tables_and_slos(tmp_path):
    trace = tmp_path / "log.jsonl"
    trace.write_text(
        "".join(
            f'{{"timestamp": {i * 500}, "input_length": {i + 1}, "output_length": {10 + 5 * i}}}\n'
            for i in range(2001)
        )
    )
    record = finished(tmp_path, trace=str(trace), interactive_max_output_tokens=5000)
    rate = record.metric("request_rate_per_s")
    assert (rate.kind, rate.value) == ("measured", pytest.approx(2.0))
    assert rate.lo == pytest.approx(2.0, rel=0.01)
    assert record.metric("gap_cv").value == pytest.approx(0.0, abs=1e-6)
    assert record.metric("requests").value == 2001
    median = record.metric("prompt_tokens", quantile="p50")
    assert median.value == 1001
    assert median.lo is None, "lengths that rise all the time are worth no independent ones"
    assert "2001 requests depend on one another" in median.reason
    assert record.metric("class_share", **{"class": "batch"}).value == pytest.approx(1002 / 2001)
    assert record.table("windows")["requests"].sum() == 2001
    assert record.facts["slo"]["interactive"]["ttft_ms"] == 500.0
    profile = LoadProfile.from_record(record)
    assert (profile.source, profile.kind, profile.rate_per_s) == ("log.jsonl", "measured", 2.0)


def test_a_bad_trace_is_known_before_anything_starts(tmp_path):
    trace = tmp_path / "log.csv"
    trace.write_text("")
    bad = {"name": "test", "question": "?", "profile_load": {"trace": str(trace)}}
    with pytest.raises(ConfigError, match="is empty"):
        profile_load.check(Pilot.model_validate(bad))
    assert profile_load.check(Pilot.model_validate(bad | {"profile_load": {}})) == []


def test_a_short_trace_gives_no_interval_for_a_tail(tmp_path):
    trace = tmp_path / "log.jsonl"
    trace.write_text(
        "".join(f'{{"timestamp": {i}, "input_length": 5, "output_length": 5}}\n' for i in range(50))
    )
    tail = finished(tmp_path, trace=str(trace)).metric("output_tokens", quantile="p99")
    assert (tail.value, tail.lo) == (5.0, None)
    assert "p99 needs 368" in tail.how
