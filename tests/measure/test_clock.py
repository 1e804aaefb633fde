"""The machine's own clock calls what samples the meters."""

import threading
import time
from itertools import pairwise

import pytest

from workbench.measure.meters.clock import SystemClock

INTERVAL_S = 0.1


@pytest.mark.parametrize("late_s", [0.15, 0.25])
def test_a_late_call_has_none_at_its_heels(late_s: float) -> None:
    """Two samples at one moment look like two devices under one name, and have no energy."""
    called_s: list[tuple[float, float]] = []
    enough = threading.Event()

    def call() -> None:
        began_s = time.monotonic()
        if len(called_s) % 2:
            time.sleep(late_s)
        called_s.append((began_s, time.monotonic()))
        if len(called_s) == 6:
            enough.set()

    end = SystemClock().every(INTERVAL_S, call)
    assert enough.wait(timeout=60)
    end()
    after_s = [later - ended for (_, ended), (later, _) in pairwise(called_s)]
    assert min(after_s) > 0.45 * INTERVAL_S, called_s
