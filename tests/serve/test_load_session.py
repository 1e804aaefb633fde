"""Arms under one load: the session over a scripted server, its kills, stalls and addresses."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from workbench.errors import StageError
from workbench.load.planned import PlannedRequest
from workbench.measure.orders import williams
from workbench.measure.under_load import load_figures
from workbench.pilot.sections.measure_ab import Address
from workbench.pilot.sections.readiness import Quiet
from workbench.serve.address import address_problem, try_address
from workbench.serve.client import load_processes
from workbench.serve.endpoint import Endpoint, ask
from workbench.serve.load_session import LoadedArm, LoadSession, in_blocks
from workbench.serve.replay import FAULTS

ANY_NOISE = Quiet(max_others_share=1, max_steal_share=1, max_pressure_share=1)
ARMS = ("full_precision", "hybrid")


def schedule(blocks: int, each: int, block_s: float, tokens: int = 4) -> list[PlannedRequest]:
    rows = range(blocks * each)
    return [PlannedRequest(i, block_s * i / each, 3, tokens, "interactive", False) for i in rows]


def test_a_load_is_cut_into_blocks_with_times_of_their_own() -> None:
    blocks = in_blocks(schedule(3, 4, 0.5), 0.5, 3)
    assert [[p.id for p in block] for block in blocks] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert [p.intended_s for p in blocks[2]] == pytest.approx([0, 0.125, 0.25, 0.375])
    late = PlannedRequest(0, 1.5, 3, 4, "batch", False)
    assert in_blocks([late], 0.5, 3)[2][0].intended_s == pytest.approx(0.5)


def test_the_same_requests_go_to_every_arm_and_a_stall_stands_in_that_arms_tail(
    serve, tmp_path: Path
) -> None:
    server = serve(slots=8)
    asked: list[tuple[str, list[int]]] = []
    with load_processes(Endpoint(server.address), tmp_path) as client:

        def arm(name: str) -> LoadedArm:
            def play(requests):
                asked.append((name, [p.id for p in requests]))
                stalls = name == "hybrid" and len(asked) in (1, 2)
                if not stalls:
                    return client.replay(requests, lambda _: [1, 2, 3], model=name)
                gate = server.schedulers[name].gate
                closed, opened = (0.1, gate.clear), (0.6, gate.set)
                orders = [closed, opened]
                return client.replay(requests, lambda _: [1, 2, 3], model=name, orders=orders)

            return LoadedArm(play, lambda: ask(client.endpoint, [1, 2, 3], 4, name))

        blocks = in_blocks(schedule(2, 20, 0.4), 0.4, 2)
        arms = {name: arm(name) for name in ARMS}
        session = LoadSession(tmp_path, arms, blocks, ANY_NOISE, processes=lambda: [1])
        heard: list[tuple[int, int]] = []
        session.run(60.0, lambda done, most: heard.append((done, most)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    orders = [tuple(name for name, _ in asked[at : at + 2]) for at in (0, 2)]
    assert set(orders) == set(map(tuple, williams(ARMS))), "each arm is first as often"
    assert asked[0][1] == asked[1][1] != asked[2][1] == asked[3][1]
    requests, gaps = session.requests(), session.gaps()
    assert set(requests["status"]) == {"ok"} and len(requests) == 80
    assert requests.groupby("arm")["answer"].unique().map(list).to_dict() == {
        "full_precision": ["AAAA"], "hybrid": ["BBBB"]
    }  # fmt: skip
    assert set(requests["counted_prompt_tokens"]) == {3}
    assert len(gaps) == 80 * 3 and (gaps["gap_ms"] >= 0).all()
    slos = {"interactive": {"ttft_ms": 250.0}}
    made = {
        (m.name, m.labels["arm"], m.labels.get("quantile")): m
        for m in load_figures(requests, gaps, ARMS, slos, 0.4, FAULTS)
    }
    assert made["ttft_ms", "hybrid", "p95"].value > 400
    assert made["ttft_ms", "full_precision", "p95"].value < 400, "of a machine beside other tests"
    assert made["slo_met_share", "hybrid", None].value < 0.8
    assert made["slo_met_share", "full_precision", None].value > 0.9


def test_a_killed_session_plays_no_finished_block_again_and_ends_in_its_time(
    tmp_path: Path,
) -> None:
    played: list[int] = []

    def arm(killed_at: int | None) -> LoadedArm:
        def play(requests):
            played.append(requests[0].id)
            if killed_at is not None and len(played) > killed_at:
                raise KeyboardInterrupt
            return outcomes_of(requests)

        return LoadedArm(play)

    blocks = in_blocks(schedule(8, 2, 1.0), 1.0, 8)
    blocks.insert(3, [])  # a pause of the load: nothing to measure

    def session(killed_at: int | None) -> LoadSession:
        arms = {name: arm(killed_at) for name in ARMS}
        return LoadSession(tmp_path, arms, blocks, ANY_NOISE)

    with pytest.raises(KeyboardInterrupt):
        session(5).run(60.0, lambda done, most: None)
    assert session(None).finished() == 2
    played.clear()
    session(None).run(60.0, lambda done, most: None)
    assert sorted(set(played)) == [4, 6, 8, 10, 12, 14] and len(played) == 12
    assert session(None).requests()["block"].nunique() == 8
    played.clear()
    session(None).run(60.0, lambda done, most: None)
    assert played == []

    short = LoadSession(tmp_path / "short", {"full_precision": arm(None)}, blocks, ANY_NOISE)
    short.run(1e-9, lambda done, most: None)
    assert short.finished() == 2, "beyond twice its time it ends after two"


def outcomes_of(requests):
    from workbench.serve.replay import Outcome

    time.sleep(0.002)
    return [
        Outcome(p.id, p.class_, p.intended_s, p.intended_s, 3, 4, "A", 0.1, 0.2, 0.2, 4, "ok")
        for p in requests
    ]


def test_faults_are_those_of_the_arm_that_had_them(serve, tmp_path: Path) -> None:
    server = serve(slots=8)
    server.schedulers["hybrid"].broken = "out of order"
    with load_processes(Endpoint(server.address), tmp_path) as client:
        arms = {
            name: LoadedArm(
                lambda requests, name=name: client.replay(requests, lambda _: [1], model=name)
            )
            for name in ARMS
        }
        session = LoadSession(tmp_path, arms, in_blocks(schedule(1, 8, 0.2), 0.2, 1), ANY_NOISE)
        session.run(60.0, lambda done, most: None)
    faults = session.requests().groupby("arm")["fault"].count()
    assert faults.to_dict() == {"full_precision": 0, "hybrid": 8}


def test_an_address_is_tried_before_anything_is_measured(
    serve, tmp_path: Path, monkeypatch
) -> None:
    server = serve()
    here = Address(endpoint=server.address, model="pilot")
    tried = try_address("today", here, tmp_path)
    assert tried.endpoint.fixed_length, "this server takes forced lengths"
    assert 0 < tried.probe.connect_ms < 1000 and 0 < tried.probe.round_trip_ms < 1000
    free = try_address("today", here.model_copy(update={"fixed_length": False}), tmp_path)
    assert not free.endpoint.fixed_length
    wrong = here.model_copy(update={"model": "no such model"})
    with pytest.raises(StageError, match=r"measure_ab\.arms\.today: .* did not answer"):
        try_address("today", wrong, tmp_path)
    with pytest.raises(StageError, match="does not answer"):
        try_address("today", Address(endpoint="http://127.0.0.1:9"), tmp_path)
    with pytest.raises(StageError, match="gave no answer"):
        ask(Endpoint(server.address), [1], 4, "no such model")

    keyed = Address(endpoint=server.address, api_key_env="NO_SUCH_KEY")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert "NO_SUCH_KEY is not set" in address_problem("today", keyed)
    monkeypatch.setenv("NO_SUCH_KEY", "secret")
    assert address_problem("today", keyed) is None
    assert "secret" not in keyed.model_dump_json()


@pytest.mark.slow
def test_five_seconds_of_silence_stand_in_that_arms_p99(serve, tmp_path: Path) -> None:
    """Latencies count from when a request was due, so what came meanwhile has waited too."""
    server = serve(slots=200)
    with load_processes(Endpoint(server.address), tmp_path) as client:

        def arm(name: str) -> LoadedArm:
            gate = server.schedulers[name].gate
            orders = [(0.5, gate.clear), (5.5, gate.set)] if name == "hybrid" else []
            return LoadedArm(
                lambda requests: client.replay(
                    requests, lambda _: [1, 2, 3], model=name, orders=orders
                )
            )

        arms = {name: arm(name) for name in ARMS}
        blocks = in_blocks(schedule(1, 120, 1.2), 1.2, 1)
        session = LoadSession(tmp_path, arms, blocks, ANY_NOISE)
        session.run(60.0, lambda done, most: None)
    tables, slos = (session.requests(), session.gaps()), {"interactive": {"ttft_ms": 250.0}}
    p99 = {
        m.labels["arm"]: m.value
        for m in load_figures(*tables, ARMS, slos, 1.2, FAULTS)
        if m.matches("ttft_ms", {"quantile": "p99"})
    }
    assert p99["hybrid"] > 4900 and p99["full_precision"] < 2000
