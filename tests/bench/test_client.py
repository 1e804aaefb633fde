"""The comparison of load clients: what is asked of aiperf, and how its records are read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workbench.bench.client import COMPARED, _aiperf, _compared, bench_client
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


def test_an_aiperf_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--aiperf .*: does not exist"):
        bench_client(tmp_path, tmp_path / "absent")
