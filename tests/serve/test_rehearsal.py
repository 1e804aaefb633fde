"""What is read out of a replay: phases, quantiles, targets, and the four ways to end."""

from __future__ import annotations

import asyncio

import numpy as np
import pandas as pd
import pytest

from workbench.load.piece import PlannedRequest
from workbench.measure.request_latency import slo_met
from workbench.serve.rehearsal import (
    Handover,
    phase_latencies,
    requests_table,
    served_by,
)
from workbench.serve.replay import Outcome, load_client


def outcome(number: int, arm: str | None, intended, first, last, **more) -> Outcome:
    fields = {"output_tokens": 5, "status": "ok", "end_s": last, **more}
    return Outcome(number, "interactive", intended, intended, 10, 5, arm, first, last, **fields)


@pytest.fixture
def requests() -> pd.DataFrame:
    """An order at 10 s; the hybrid's last answer ends at 12 s."""
    return requests_table(
        [
            outcome(0, "hybrid", 1.0, 1.5, 2.0),
            outcome(1, "hybrid", 9.0, 9.5, 12.0),
            outcome(2, "full_precision", 9.5, 10.25, 11.0),
            outcome(3, "full_precision", 11.0, 11.5, 14.0),
            outcome(4, "full_precision", 13.0, 13.5, 14.0),
        ]
    )


def test_the_handover_lasts_until_the_old_arm_has_drained(requests) -> None:
    handover = Handover.of(requests, 10.0, "hybrid", "full_precision")
    assert (handover.first_token_s, handover.first_due_s, handover.drained_s) == (10.25, 9.5, 12.0)
    phases = handover.phases(requests)
    assert list(phases) == ["before", "switch", "switch", "switch", "after"]


def test_a_token_of_the_fallback_before_the_order_is_not_its_first(requests) -> None:
    early = requests_table([outcome(5, "full_precision", 3.0, 3.5, 4.0)])
    both = pd.concat([early, requests], ignore_index=True)
    assert Handover.of(both, 10.0, "hybrid", "full_precision").first_token_s == 10.25


def test_without_a_request_for_the_fallback_there_is_no_first_token(requests) -> None:
    alone = requests[requests["arm"] == "hybrid"]
    handover = Handover.of(alone, 10.0, "hybrid", "full_precision")
    assert handover.first_token_s is None and handover.drained_s == 12.0


def test_a_quantile_that_nobody_reached_is_missing_with_its_reason() -> None:
    many = requests_table([outcome(i, "hybrid", 0.0, 0.001 * i, 0.1) for i in range(1, 51)])
    figures = {
        (name, labels["arm"], labels["phase"], labels["quantile"]): estimate
        for name, estimate, labels in phase_latencies(many, np.array(["before"] * 50))
    }
    assert len(figures) == 3 * (1 + 2 + 1) * 3
    middle = figures["ttft_ms", "hybrid", "before", "p50"]
    assert middle.value == pytest.approx(25.5)
    assert middle.lo is None and "50 requests in one row" in middle.reason
    tail = figures["ttft_ms", "hybrid", "before", "p99"]
    assert tail.value is None
    assert tail.reason == "50 requests of the arm in this phase; p99 needs 100 for a value"
    assert figures["e2e_ms", "full_precision", "after", "p50"].value is None


def test_only_whole_answers_have_a_latency() -> None:
    mixed = requests_table(
        [outcome(i, "full_precision", 0.0, 0.01, 0.02) for i in range(4)]
        + [outcome(9, "full_precision", 0.0, 9.0, 9.0, status="truncated", output_tokens=1)]
    )
    figures = list(phase_latencies(mixed, np.array(["after"] * 5)))
    (p50,) = [
        e for n, e, la in figures if (n, la["phase"], la["quantile"]) == ("ttft_ms", "after", "p50")
    ]
    assert (p50.n, p50.value) == (4, pytest.approx(10.0))


def test_at_the_switch_each_arm_has_its_own_latencies() -> None:
    both = requests_table(
        [outcome(i, "hybrid", 0.0, 0.01, 0.05) for i in range(4)]
        + [outcome(9 + i, "full_precision", 0.0, 1.0, 1.4) for i in range(4)]
    )
    p50 = {
        (name, labels["arm"]): estimate.value
        for name, estimate, labels in phase_latencies(both, np.array(["switch"] * 8))
        if labels["phase"] == "switch" and labels["quantile"] == "p50"
    }
    assert p50["ttft_ms", "hybrid"] == pytest.approx(10)
    assert p50["ttft_ms", "full_precision"] == pytest.approx(1000)
    assert p50["tpot_ms", "hybrid"] == pytest.approx(10)
    assert p50["tpot_ms", "full_precision"] == pytest.approx(100)


def test_a_request_that_nobody_answered_belongs_to_the_arm_that_it_was_sent_to() -> None:
    lost = {"status": "rejected", "output_tokens": 0, "end_s": None}
    turned_away = [outcome(i, None, due, None, None, **lost) for i, due in enumerate((9.0, 11.0))]
    late = outcome(3, "hybrid", 11.0, 11.5, 12.0)
    arms = served_by(requests_table([*turned_away, late]), ordered_s=10.0)
    assert list(arms) == ["hybrid", "full_precision", "hybrid"]


def test_targets_count_from_the_intended_start() -> None:
    slos = {"interactive": {"ttft_ms": 500.0, "tpot_ms": 100.0, "e2e_s": None}, "batch": {}}
    late = outcome(1, "hybrid", 0.0, 0.6, 0.7)
    late.sent_s = 0.55
    slow = outcome(2, "hybrid", 0.0, 0.1, 0.6)  # 4 gaps in 0.5 s
    single = outcome(3, "hybrid", 0.0, 0.4, 0.4, output_tokens=1)
    lost = outcome(4, "hybrid", 0.0, None, None, status="failed", output_tokens=0, end_s=1.0)
    unjudged = outcome(5, "hybrid", 0.0, 0.1, 0.2)
    unjudged.class_ = "batch"
    good = outcome(6, "hybrid", 0.0, 0.4, 0.8)
    table = requests_table([late, slow, single, lost, unjudged, good])
    assert list(slo_met(table, slos)) == [False, False, True, False, None, True]
    slos = {"interactive": {"tpot_ms": 100.0}}
    assert list(slo_met(table, slos)) == [True, False, None, False, None, True]


PLANNED = [PlannedRequest(i, 0.0, 3, 4, "interactive", False) for i in range(3)]


def play(served) -> list[Outcome]:
    async def go() -> list[Outcome]:
        async with load_client(served.address) as client:
            client.start()
            return await client.replay(PLANNED, lambda planned: [5, 6, 7])

    return asyncio.run(go())


def test_answers_cut_short_are_truncated(serve) -> None:
    served = serve(slots=3)
    served.schedulers["hybrid"].broken, served.schedulers["hybrid"].fail_after = "gone", 2
    outcomes = play(served)
    assert {o.status for o in outcomes} == {"truncated"}
    assert all(o.output_tokens == 2 and "gone" in o.error for o in outcomes)


def test_requests_without_a_token_have_failed(serve) -> None:
    served = serve(slots=3)
    served.schedulers["hybrid"].broken = "gone"
    outcomes = play(served)
    assert {o.status for o in outcomes} == {"failed"}
    assert all(o.first_token_s is None and o.end_s is not None for o in outcomes)


def test_a_full_queue_rejects_and_the_others_are_served(serve) -> None:
    served = serve(slots=1, queue=1, step_s=0.02)
    outcomes = play(served)
    assert sorted(o.status for o in outcomes) == ["ok", "ok", "rejected"]


def test_fewer_tokens_than_asked_are_truncated_though_the_end_is_proper(serve) -> None:
    served = serve(slots=3)
    step = served.schedulers["hybrid"]._step

    def stop_early(handle) -> None:
        if handle.given == 3:
            served.schedulers["hybrid"]._end(handle, "stop")
        else:
            step(handle)

    served.schedulers["hybrid"]._step = stop_early
    outcomes = play(served)
    assert {o.status for o in outcomes} == {"truncated"}
    assert outcomes[0].error == "3 of 4 tokens; the server counted 3"


def test_latency_counts_from_the_intended_start(serve) -> None:
    """A request that has to wait behind another one was due all the same."""
    served = serve(slots=1, step_s=0.05)
    outcomes = play(served)
    assert max(o.sent_s for o in outcomes) < 0.4
    assert max(o.first_token_s - o.intended_s for o in outcomes) > 0.4
