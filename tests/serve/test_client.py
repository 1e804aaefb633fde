"""The client processes: what they report, what they notice, and what they hold."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from workbench.errors import StageError
from workbench.load.planned import PlannedRequest
from workbench.serve.client import load_processes, processes_for
from workbench.serve.endpoint import Endpoint


def planned(count: int, gap_s: float = 0.01, tokens: int = 4) -> list[PlannedRequest]:
    return [PlannedRequest(i, gap_s * i, 3, tokens, "interactive", False) for i in range(count)]


def ids(request: PlannedRequest) -> list[int]:
    return [5, 6, 7]


def test_a_replay_is_dealt_out_to_processes_with_one_clock(serve, tmp_path: Path) -> None:
    served = serve(slots=8, step_s=0.001)
    ordered: list[float] = []
    progress: list[int] = []
    with load_processes(Endpoint(served.address), tmp_path) as client:
        outcomes = client.replay(
            planned(40),
            ids,
            processes=2,
            orders=[(0.2, lambda: ordered.append(client.now_s()))],
            on_progress=progress.append,
        )
        assert client.processes == 2
        took = client.burst(planned(8), ids, model="full_precision")
    assert [o.id for o in outcomes] == list(range(40))
    assert {(o.status, o.error, o.arm, o.counted_by) for o in outcomes} == {
        ("ok", None, "hybrid", "usage")
    }
    for outcome in outcomes:
        assert outcome.intended_s <= outcome.sent_s < outcome.first_token_s <= outcome.end_s
        assert outcome.sent_s < outcome.intended_s + 0.5
        whole_s = outcome.last_token_s - outcome.first_token_s
        assert len(outcome.gaps_s) == 3 and sum(outcome.gaps_s) == pytest.approx(whole_s, abs=1e-4)
    assert 0.2 <= ordered[0] < 1.0
    assert progress[-1] == 40
    burst, took_s = took
    assert {(o.status, o.arm, o.intended_s) for o in burst} == {("ok", "full_precision", 0.0)}
    assert took_s == max(o.end_s for o in burst)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["client-0.log", "client-1.log"]


def test_a_client_that_is_killed_is_said_and_not_waited_for(serve, tmp_path: Path) -> None:
    served = serve()
    with (
        pytest.raises(StageError, match="the load client was killed by signal 9") as caught,
        load_processes(Endpoint(served.address), tmp_path) as client,
    ):

        def kill() -> None:
            os.kill(client._children[0].pid, signal.SIGKILL)

        client.replay(planned(200), ids, orders=[(0.1, kill)])
    assert "client-0.log" in caught.value.next_step


def test_what_the_check_raises_ends_the_load(serve, tmp_path: Path) -> None:
    served = serve()
    gone = threading.Event()

    def check() -> None:
        if gone.is_set():
            raise StageError("the server was killed")

    with (
        pytest.raises(StageError, match="the server was killed"),
        load_processes(Endpoint(served.address), tmp_path, check=check) as client,
    ):
        client.replay(planned(2000), ids, orders=[(0.1, gone.set)])


def test_processes_by_the_busiest_second_and_what_is_due_at_once(monkeypatch) -> None:
    monkeypatch.setattr("workbench.serve.client.cpu", lambda: type("Cpu", (), {"usable_cores": 4}))
    assert processes_for(planned(100)) == 1
    assert processes_for(planned(1000, gap_s=0.002)) == 2
    assert processes_for(planned(100, tokens=250)) == 3
    assert processes_for(planned(1000, gap_s=0.0)) == 4
