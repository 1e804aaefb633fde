"""What a day of switches leaves behind, and the soak of ``make soak`` in small."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from workbench.engine.request import GenerationRequest
from workbench.serve.metrics import Metrics
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import Route, ServedArm
from workbench.serve.router import KEPT_SWITCHES, Router

DAY = 20_000
"""Switches, one every four seconds."""
REQUEST = GenerationRequest((5, 6, 7), max_tokens=2)


class AtOnce:
    """An arm that answers as soon as the loop comes to it."""

    failed, on_loop = None, True

    def submit(self, request: GenerationRequest, on_token: Any, on_done: Any) -> SimpleNamespace:
        submitted = SimpleNamespace(finish_reason="length", error=None, cancel=lambda: None)
        loop = asyncio.get_running_loop()
        for token in range(request.max_tokens):
            loop.call_soon(on_token, token)
        loop.call_soon(on_done, submitted)
        return submitted


def test_a_day_of_switches_keeps_memory_flat() -> None:
    """Each with a request under way, a reason of its own, and a scrape now and then."""

    async def day() -> tuple[int, float]:
        arms = [ServedArm(name, AtOnce(), 4) for name in ("full_precision", "hybrid")]
        rule = RollbackRule(max_error_share=0.2)
        router = Router(arms, fallback="full_precision", route=Route("hybrid"), rule=rule)
        metrics, began = Metrics(router, "pilot", context=64), (0, 0)
        for number in range(DAY):
            if number == DAY // 10:
                began = held()
            routed = router.submit(REQUEST)
            arm = "hybrid" if number % 2 else "full_precision"
            router.switch(arm, reason=f"number {number}", force=True)
            async for _ in routed.stream():
                pass
            if number % 1000 == 0:
                metrics.text()
        assert len(router.switches) == KEPT_SWITCHES
        assert router.switches[-1].reason == f"number {DAY - 1}"
        assert b'cause="order",from_arm="hybrid",to_arm="full_precision"} 10000' in metrics.text()
        objects, resident_bytes = held()
        return objects - began[0], (resident_bytes - began[1]) / 1e6

    def held() -> tuple[int, int]:
        gc.collect()
        return len(gc.get_objects()), psutil.Process().memory_info().rss

    objects, grown_mb = asyncio.run(day())
    # A switch that stayed would be an object, and its texts some 3 MB in all.
    assert objects < 500 and grown_mb < 3, (objects, grown_mb)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_soak_in_small(soak) -> None:
    rows: dict[str, dict] = {}
    soak.soak([40], 20.0, 8.0, 400, 3, lambda row: rows.update({row["way"]: row}))
    for way in ("streams", "switches"):
        row = rows[way]
        assert row["errors"] == row["failed_without_token"] == row["truncated"] == 0, row
        assert row["requests"] > 40 and row["memory_growth_mb"] < 40, row
    row = rows["kills"]
    assert row["failed_without_token"] == row["undeclared"] == 0, row
    assert row["truncated"] == row["errors"] and row["first_fallback_token_s"] > 0, row
    row = rows["overload"]
    assert row["errors"] == 0 and row["refused"] > 0.4 * row["requests"], row
    assert row["slo_met_share"] > 0.95 and row["retry_after_too_short"] < 0.5, row
    assert row["retry_after_s"] < row["queue_empty_after_s"] + 2.0, row
