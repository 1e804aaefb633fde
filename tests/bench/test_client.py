"""The comparison of load clients: what is asked of aiperf, and how its records are read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workbench.bench.client import COMPARED, _aiperf, _compared, bench_client
from workbench.bench.guidellm_client import guidellm_times
from workbench.errors import ConfigError, StageError
from workbench.load.planned import PlannedRequest
from workbench.serve.endpoint import Endpoint

FAKE = """#!{python}
import json, pathlib, sys
asked = dict(zip(sys.argv[2::1], sys.argv[3::1]))
results = pathlib.Path(asked["--output-artifact-dir"])
results.mkdir()
lines = [json.loads(line) for line in open(asked["--input-file"])]
assert [line["payload"]["prompt"] for line in lines] == ["one", "two"]
assert [line["timestamp"] for line in lines] == [0.0, 250.0]
assert "--fixed-schedule" in sys.argv and asked["--url"] == "http://127.0.0.1:1"
with open(results / "profile_export.jsonl", "w") as file:
    for _ in lines[:{records}]:
        values = dict(time_to_first_token=8.0, http_req_waiting=7.0, inter_token_latency=0.5,
                      request_latency=20.0)
        metrics = {{name: {{"value": value}} for name, value in values.items()}}
        at = {{"credit_issued_ns": 1000000, "request_start_ns": 3000000}}
        file.write(json.dumps({{"metrics": metrics, "metadata": at}}) + "\\n")
"""
SCHEDULE = [PlannedRequest(i, 0.25 * i, 3, 4, "interactive", False) for i in range(2)]


def run(folder: Path, records: int):
    aiperf = folder / "aiperf"
    aiperf.write_text(FAKE.format(python=sys.executable, records=records))
    aiperf.chmod(0o755)
    endpoint = Endpoint("http://127.0.0.1:1", "workbench")
    return _aiperf(aiperf, endpoint, folder, folder / "work", SCHEDULE, ["one", "two"])


def test_records_of_aiperf_become_our_times(tmp_path: Path) -> None:
    assert run(tmp_path, 2) == {
        "ttft_wire_ms": [7.0, 7.0],
        "ttft_ms": [8.0, 8.0],
        "ttft_due_ms": [10.0, 10.0],
        "itl_ms": [0.5, 0.5],
        "e2e_ms": [20.0, 20.0],
        "dispatch_ms": [2.0, 2.0],
    }


def test_a_run_that_lost_requests_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="recorded 1 of 2 requests"):
        run(tmp_path, 1)


def test_a_ratio_needs_enough_rounds() -> None:
    few = _compared(COMPARED[0], [1.0, 1.0], [2.0, 2.0])
    assert (few["ratio"], few["lo"]) == (pytest.approx(0.5), None)
    many = _compared(COMPARED[0], [1.0, 1.1] * 3, [2.0, 2.0] * 3)
    assert many["lo"] < many["ratio"] < many["hi"] < 1.0


def test_another_client_that_is_not_there(tmp_path: Path) -> None:
    for name in ("aiperf", "guidellm"):
        with pytest.raises(ConfigError, match=rf"--{name} .*: does not exist"):
            bench_client(tmp_path, **{name: tmp_path / "absent"})


FAKE_GUIDELLM = """#!{python}
import json, sys
asked = dict(zip(sys.argv[1:], sys.argv[2:]))
data, output = json.loads(asked["--data"]), json.loads(asked["--output"])
assert json.loads(asked["--backend"])["target"] == "http://127.0.0.1:1"
lines = [json.loads(line) for line in open(data["source"]["path"])]
assert [(line["input_length"], line["output_length"]) for line in lines] == [(3, 4)] * 3
answered = [
    dict(request_start_time=9.5 + line["timestamp"], request_end_time=9.6 + line["timestamp"],
         request_latency=0.1, time_to_first_token_ms=8.0, inter_token_latency_ms=0.5,
         output_tokens=4, info=dict(timings=dict(targeted_start=9.498 + line["timestamp"])))
    for line in lines[:{records}]
]
said = dict(successful=answered[::-1], errored=[], incomplete=[])
with open(output["path"], "w") as file:
    json.dump(dict(benchmarks=[dict(requests=said)]), file)
"""


def guidellm_run(folder: Path, records: int) -> dict[str, list[float]]:
    guidellm = folder / "guidellm"
    guidellm.write_text(FAKE_GUIDELLM.format(python=sys.executable, records=records))
    guidellm.chmod(0o755)
    endpoint = Endpoint("http://127.0.0.1:1", "workbench")
    return guidellm_times(guidellm, endpoint, folder, folder / "work", SCHEDULE, "workbench")


def test_records_of_guidellm_become_our_times(tmp_path: Path) -> None:
    """From the send and from the moment it was to be sent at; a row more is no request of ours."""
    found = guidellm_run(tmp_path, 3)
    assert found["ttft_ms"] == [8.0, 8.0]
    assert found["ttft_due_ms"] == pytest.approx([10.0, 10.0])
    assert found["dispatch_ms"] == pytest.approx([2.0, 2.0])
    assert found["itl_ms"] == [0.5, 0.5] and found["e2e_ms"] == pytest.approx([100.0, 100.0])
    assert found["tokens_per_s"] == pytest.approx([8 / 0.35])
    with pytest.raises(StageError, match="recorded 1 of 2 requests"):
        guidellm_run(tmp_path, 1)
