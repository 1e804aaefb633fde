"""The stage: what it records, and that a trace is read once whatever asks for it."""

import json

import pytest

from workbench.errors import ConfigError
from workbench.load import kept
from workbench.load.profile import LoadProfile
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages import profile_load
from workbench.stages.context import StageContext


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))


def pilot_of(**section) -> Pilot:
    return Pilot.model_validate(
        {"name": "test", "question": "does it profile?", "profile_load": section}
    )


def finished(tmp_path, **section) -> StageRecord:
    record = StageRecord("profile_load", tmp_path / "stage")
    progress = Progress(tmp_path / "events.jsonl", "profile_load")
    profile_load.run(StageContext(pilot_of(**section), record, progress, {}))
    record.save()
    return StageRecord.load(record.folder)


def log_of(tmp_path, n=2001, step_ms=500):
    trace = tmp_path / "log.jsonl"
    line = '{{"timestamp": {}, "input_length": {}, "output_length": {}}}\n'
    trace.write_text("".join(line.format(i * step_ms, i + 1, 10 + 5 * i) for i in range(n)))
    return trace


def test_a_declared_load_is_recorded_as_assumed_without_intervals(tmp_path):
    record = finished(tmp_path)
    assert {m.kind for m in record.metrics if m.value is not None} == {"assumed"}
    assert all(metric.lo is None for metric in record.metrics)
    assert record.metric("prompt_tokens", quantile="p50").value == pytest.approx(512, rel=0.15)
    assert record.metric("class_share", **{"class": "batch"}).value == pytest.approx(0.2, abs=0.06)
    assert "declared" in record.notes[0]
    assert record.metric("concurrency").value is None


def test_a_trace_is_recorded_as_measured_with_its_tables_and_slos(tmp_path):
    record = finished(tmp_path, trace=str(log_of(tmp_path)), interactive_max_output_tokens=5000)
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
    assert record.facts["trace"]["rows"] == 2001
    assert len(record.facts["trace"]["sha256"]) == 64
    profile = LoadProfile.from_record(record)
    assert (profile.source, profile.kind, profile.rate_per_s) == ("log.jsonl", "measured", 2.0)


def test_a_trace_is_read_once_whatever_asks_for_it(tmp_path, monkeypatch):
    trace = log_of(tmp_path)
    reads = []
    read_trace = kept.read_trace
    monkeypatch.setattr(
        kept, "read_trace", lambda *args: reads.append(args[0]) or read_trace(*args)
    )
    pilot = pilot_of(trace=str(trace))
    for _ in range(2):
        profile_load.check(pilot)
    finished(tmp_path, trace=str(trace))
    finished(tmp_path, trace=str(trace), piece="peak")  # says nothing about how it is read
    assert len(reads) == 1
    finished(tmp_path, trace=str(trace), interactive_max_output_tokens=7)
    more = '{"timestamp": 1000500, "input_length": 1, "output_length": 1}\n'
    trace.write_text(trace.read_text() + more)
    assert finished(tmp_path, trace=str(trace)).metric("requests").value == 2002
    assert len(reads) == 3


def test_a_pass_that_fails_leaves_nothing_behind(tmp_path):
    trace = tmp_path / "log.csv"
    trace.write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        profile_load.check(pilot_of(trace=str(trace)))
    assert not list((tmp_path / "runs" / "traces").iterdir())
    assert profile_load.check(pilot_of()) == []


def test_a_shared_profile_stands_in_for_the_trace(tmp_path):
    first = finished(tmp_path, trace=str(log_of(tmp_path)))
    shared = tmp_path / "profile.json"
    shared.write_bytes(first.artefact("profile").read_bytes())
    assert "prompt_tokens" in json.loads(shared.read_text())
    second = finished(tmp_path / "other", profile=str(shared))
    assert second.facts["kind"] == "modelled"
    assert second.metric("request_rate_per_s").value == pytest.approx(2.0, rel=0.05)
    assert "drawn from the profile of log.jsonl" in second.notes[0]
    larger = finished(
        tmp_path / "third", profile=str(shared), generate={"scale": 3.0, "duration_s": 500.0}
    )
    assert larger.metric("request_rate_per_s").value == pytest.approx(6.0, rel=0.05)
    assert profile_load.check(pilot_of(profile=str(shared))) == []


def test_a_short_trace_gives_no_interval_for_a_tail(tmp_path):
    trace = tmp_path / "log.jsonl"
    trace.write_text(
        "".join(f'{{"timestamp": {i}, "input_length": 5, "output_length": 5}}\n' for i in range(50))
    )
    tail = finished(tmp_path, trace=str(trace)).metric("output_tokens", quantile="p99")
    assert (tail.value, tail.lo) == (5.0, None)
    assert "50 requests in one row, an interval needs 200" in tail.how


def test_two_sources_at_once_are_refused():
    with pytest.raises(ValueError, match="trace and profile are both given"):
        pilot_of(trace="a", profile="b")
    with pytest.raises(ValueError, match="no time zone 'Berlin'"):
        pilot_of(time_zone="Berlin")
    with pytest.raises(ValueError, match="groups output, prompt are missing"):
        pilot_of(pattern="(?P<time>.*)")
