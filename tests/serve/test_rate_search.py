"""The largest rate on simulated queues whose answer is known in closed form."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from workbench.measure.statistics import Estimate
from workbench.serve.overload import Windows, rises
from workbench.serve.rate_search import Point, largest_rate

SERVERS, SERVICE_S = 4, 0.1
TARGET_S, WANTED = 0.1, 0.95


def queue(
    rate: float, seconds: float, seed: int, servers: int = SERVERS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """M/M/c, first come first served: (due, end, wait), seconds; shapes [requests]."""
    random = np.random.default_rng((seed, round(1000 * rate)))
    due = np.cumsum(random.exponential(1 / rate, math.ceil(rate * seconds)))
    work = random.exponential(SERVICE_S, len(due))
    free, end = [0.0] * servers, np.empty(len(due))
    start = np.empty(len(due))
    for at, (came, takes) in enumerate(zip(due, work, strict=True)):
        start[at] = max(came, heapq.heappop(free))
        end[at] = start[at] + takes
        heapq.heappush(free, end[at])
    return due, end, start - due


def share_in_time(rate: float, servers: int = SERVERS) -> float:
    """P(wait <= target) of M/M/c, by Erlang's C: the truth."""
    load = rate * SERVICE_S
    if load >= servers:
        return 0.0
    top = load**servers / math.factorial(servers) * servers / (servers - load)
    waits = top / (sum(load**k / math.factorial(k) for k in range(servers)) + top)
    return 1 - waits * math.exp(-(servers / SERVICE_S - rate) * TARGET_S)


def true_rate() -> float:
    low, high = 1e-3, SERVERS / SERVICE_S
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share_in_time(middle) >= WANTED else (low, middle)
    return low


def offered(rate: float, seconds: float, seed: int, target_s: float = TARGET_S) -> Point:
    """A point of that queue, ended early by the stop rule."""
    due, end, wait = queue(rate, seconds, seed)
    width = seconds / 24
    for now in width * np.arange(1, 25):
        if Windows.of(now, width, due, due + wait, end).overloaded(
            SERVERS, int((due <= now).sum()), target_s
        ):
            return Point(rate, "overloaded", now)
    if Windows.of(seconds, width, due, due + wait, end).overloaded(SERVERS, len(due)):
        return Point(rate, "overloaded", seconds)
    judged = wait[due > 0.1 * seconds] <= target_s
    share = float(judged.mean())
    outcome = "held" if share >= WANTED else "missed"
    met = {"interactive": Estimate(share, None, None, len(judged), "")}
    return Point(rate, outcome, max(seconds, float(end.max())), len(due), met=met)


@pytest.mark.parametrize("first", [0.5, 8.0, 25.0, 200.0])
def test_the_largest_rate_of_a_queue_is_found(first: float) -> None:
    """Within 15 % of the truth, from guesses that are far too low, near and far too high."""
    true, found, confirmed = true_rate(), [], 0
    for seed in range(12):
        result = largest_rate(lambda r, s, n, k=seed: offered(r, s, 1000 * k + n), first, 1200.0)
        assert result.kind == "found", result.why
        confirmed += result.confirmed
        assert result.rate_per_s < result.failed_per_s
        found.append(result.rate_per_s)
    assert confirmed >= 8, "of 12"
    assert np.quantile(np.abs(np.array(found) / true - 1), 0.9) < 0.15, (true, sorted(found))


@pytest.mark.parametrize(("rate", "most"), [(1.25, 0.75), (2.0, 0.5), (8.0, 0.45)])
def test_an_overload_ends_its_point_early(rate: float, most: float) -> None:
    """The queue does 40 requests/s; a point has 60 s."""
    took = [offered(rate * 40, 60.0, seed) for seed in range(20)]
    assert sum(point.outcome == "overloaded" for point in took) >= 19
    assert np.median([point.took_s for point in took]) < most * 60


def test_more_than_can_be_done_does_not_hold_because_the_point_is_short() -> None:
    """Twice the capacity for 5 s, and requests may wait for 10: all of them are in time."""
    outcomes = [offered(80.0, 5.0, seed, target_s=10.0).outcome for seed in range(20)]
    assert outcomes.count("overloaded") >= 19


def test_a_busy_queue_that_keeps_up_is_not_called_overloaded() -> None:
    """Three quarters busy, and 95 % start in time: no look of any point may be fooled."""
    for rate in (0.5 * true_rate(), 0.9 * true_rate()):
        short = [offered(rate, 3.0, seed).outcome for seed in range(100)]
        assert short.count("overloaded") <= 2, "a point of some seventy requests"
        outcomes = [offered(rate, 30.0, seed).outcome for seed in range(60)]
        assert outcomes.count("overloaded") <= 1


def test_noise_alone_does_not_rise() -> None:
    random = np.random.default_rng(0)
    fooled = sum(rises(random.normal(size=16)) for _ in range(1000))
    assert fooled / 1000 < 0.02
    assert rises(np.arange(8.0)) and not rises(np.arange(7.0)) and not rises(np.ones(20))


def test_a_server_that_ends_nothing_is_overloaded() -> None:
    """Nothing comes but one first token: the age of the oldest that waits stands for its wait."""
    due = np.arange(0.0, 20.0, 0.5)
    first, end = np.full(40, np.nan), np.full(40, np.nan)
    first[0] = 0.9
    windows = Windows.of(10.0, 1.0, due, first, end)
    assert windows.concurrency.tolist() == [3, 5, 7, 9, 11, 13, 15, 17, 19, 21]
    assert windows.ttft_s[[0, 9]].tolist() == [0.9, 9.5]
    assert windows.overloaded(4, 21, 2.0)
    assert not windows.overloaded(4, 21, 10.0), "its targets are met still"
    assert not windows.overloaded(40, 21, 2.0), "no whole batch waits"


def steps(*holds_up_to: float):
    """A server that holds up to a rate, the next one for every further point."""
    limits = list(holds_up_to)

    def measure(rate: float, seconds: float, number: int) -> Point:
        limit = limits[min(number, len(limits) - 1)]
        return Point(rate, "held" if rate <= limit else "missed", seconds)

    return measure


def test_what_a_search_could_not_find_is_said() -> None:
    ample = largest_rate(steps(math.inf), 100.0, 100.0)
    assert (ample.kind, ample.failed_per_s) == ("at_least", None) and "budget" in ample.why
    assert ample.rate_per_s == max(p.rate_per_s for p in ample.points)

    nothing = largest_rate(steps(0.0), 100.0, 100.0)
    assert (nothing.kind, nothing.rate_per_s) == ("none", None)
    assert nothing.failed_per_s == min(p.rate_per_s for p in nothing.points) < 100

    short = largest_rate(steps(10.0), 0.5, 10.0)
    assert (short.kind, short.points) == ("not_measured", ())
    assert "needs 80 s" in short.why

    late = largest_rate(lambda r, s, n: Point(r, "refused", s, why="the client was late"), 9.0, 99)
    assert (late.kind, late.why, len(late.points)) == ("not_measured", "the client was late", 2)


def test_a_budget_is_kept() -> None:
    result = largest_rate(steps(300.0), 100.0, 50.0)
    assert sum(point.took_s for point in result.points) <= 50.0


def test_a_rate_that_held_by_luck_must_hold_again() -> None:
    """All points up to 40/s hold at first; in truth 20/s is the limit."""
    result = largest_rate(steps(*[40.0] * 5, 20.0), 10.0, 1000.0)
    assert result.confirmed and 18.0 < result.rate_per_s <= 20.0
    assert result.best.rate_per_s == result.rate_per_s


def test_a_point_survives_json() -> None:
    point = offered(10.0, 20.0, 0)
    assert Point.from_json(point.to_json()) == point
