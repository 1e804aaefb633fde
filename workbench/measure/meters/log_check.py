"""What is wrong with a power log, or with what a device shows, found before anything is paid for.

Its latest rows are read, and it is watched for a moment: whether it grows, how often, how old a row
is when it comes, whether its unit and its clock can be right, and what its rate asks of a session.
How late and how averaged it is, only a step test tells, at the start of the session.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.measure.fewest import FEWEST_BLOCKS
from workbench.measure.meters.clock import Clock
from workbench.measure.meters.counter import moved
from workbench.measure.meters.csv_log import CsvMeter
from workbench.measure.meters.faults import MeterFaults
from workbench.measure.meters.sample import Sample
from workbench.measure.meters.session import AHEAD_S, ROWS_WANTED
from workbench.measure.meters.window import (
    FEWEST_POWER_SAMPLES,
    samples_together,
    several_under_one_name,
)
from workbench.wording.counts import number_of

WATCHED_S = 12.0
"""Longest look at whether the log grows; shorter where its rows say that they come more often."""
PLAUSIBLE_W = {"gpu": (2.0, 2000.0), "cpu": (1.0, 2000.0), "node": (10.0, 30_000.0)}
"""Of one source. A kilowatt called a watt lies below, a watt called a kilowatt above."""
ZONE_STEP_S = 900.0
"""Offsets from UTC are multiples of a quarter of an hour."""
STALE_ROWS = 3


@dataclass(frozen=True)
class LogCheck:
    """problems: why the log gives no figure, or a wrong one. takes: what a session with it takes,
    in words. period_s: between rows of a source, None where there are too few."""

    problems: tuple[str, ...]
    takes: str = ""
    period_s: float | None = None


def check_log(
    meter: CsvMeter, clock: Clock, max_gap_s: float, turns: int, budget_s: float
) -> LogCheck:
    """turns: of a block. budget_s: the session's time. Takes ``WATCHED_S`` at most."""
    faults = MeterFaults()
    rows: dict[str, list[Sample]] = defaultdict(list)

    def read() -> int:
        found = meter.read()
        for one in found:
            if isinstance(one, Sample):
                rows[one.channel.place].append(one)
            else:
                faults.add(clock.monotonic_s(), one.text)
        return len(found)

    read()
    period_s = _period_s(rows)
    until_s = clock.monotonic_s() + min(WATCHED_S, 2.5 * (period_s or WATCHED_S))
    came, youngest_s = 0, np.inf
    while clock.monotonic_s() < until_s:
        clock.sleep(0.1)
        if read():
            came += 1
            newest_s = max((r[-1].monotonic_s for r in rows.values()), default=-np.inf)
            youngest_s = min(youngest_s, clock.monotonic_s() - newest_s)
    period_s = _period_s(rows)
    problems = [text] if (text := faults.text()) else []
    if not rows:
        return LogCheck((*problems, "it has no row that is a sample"))
    problems += _unit_problems(rows)
    problems += _repeated_problems(rows)
    clock_problems = _clock_problems(rows, clock.monotonic_s(), period_s, came > 0)
    problems += clock_problems
    if not clock_problems and came and youngest_s < -AHEAD_S:
        problems.append(
            f"its rows are dated {-youngest_s:.1f} s ahead of this machine's clock: set the "
            "logger's clock (the step test of the session corrects what remains)"
        )
    if period_s is None:
        return LogCheck((*problems, "it has too few rows to tell how often they come"))
    if period_s > max_gap_s:
        problems.append(
            f"a row every {period_s:.3g} s, and a gap over measure_ab.meters.max_gap_s "
            f"({max_gap_s:g} s) gives no figure: have it written more often"
        )
    least_s = (2 + FEWEST_POWER_SAMPLES + 1) * period_s
    wanted_s = (2 + ROWS_WANTED) * period_s
    if FEWEST_BLOCKS * turns * least_s > budget_s:
        problems.append(
            f"a row every {period_s:.3g} s needs turns of {least_s:.3g} s or more, "
            f"{_minutes(FEWEST_BLOCKS * turns * least_s)} for {FEWEST_BLOCKS} blocks of "
            f"{number_of(turns, 'turn')}: raise measure_ab.budget_s (now {budget_s:g}) to "
            f"{np.ceil(FEWEST_BLOCKS * turns * wanted_s):.0f}, or leave arms or classes out"
        )
    takes = session_takes("the power log", period_s, turns)
    if came:
        takes += f"; a row is {max(0.0, youngest_s):.1f} s old when it comes"
    return LogCheck(tuple(problems), takes, period_s)


def session_takes(meter: str, period_s: float, turns: int) -> str:
    """What a session with a meter that says nothing of its lag takes, in words. turns: of a
    block."""
    wanted_s = (2 + ROWS_WANTED) * period_s
    return (
        f"With {meter} a session takes about {_minutes(FEWEST_BLOCKS * turns * wanted_s)}: "
        f"{FEWEST_BLOCKS} blocks of {number_of(turns, 'turn')} of {wanted_s:.3g} s, and longer if "
        "it is late or averaged, as turns become ten times as long as both"
    )


def device_period_s(samples: Sequence[Sample]) -> float | None:
    """How often a device that was asked has something new, of one channel: declared, or told by
    the times of its samples; None with too few. samples: in the order of their times."""
    times_s = np.array([s.monotonic_s for s in samples])
    times_s, _ = moved(samples[0].channel, times_s, np.array([s.value for s in samples]))
    seen_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
    return max(seen_s, samples[0].channel.period_s or 0.0) or None


def device_problem(samples: Sequence[Sample], now_s: float, max_gap_s: float) -> str:
    """Why a device that answers gives no figure, of one channel; empty where nothing is seen. A
    Prometheus answers with what it scraped long ago, and at the times of its own clock."""
    period_s = device_period_s(samples) or 0.0
    if period_s > max_gap_s:
        what = "is renewed" if samples[0].channel.quantity == "energy" else "has a sample"
        return (
            f"it {what} every {period_s:.3g} s, and a gap over measure_ab.meters.max_gap_s "
            f"({max_gap_s:g} s) gives no figure: have it read or scraped more often"
        )
    age_s = now_s - samples[-1].monotonic_s
    if age_s < -AHEAD_S or age_s > max(5.0, STALE_ROWS * period_s):
        return f"its latest sample is {_ago(age_s)}: set its clock, or see whether it is scraped"
    return ""


def _period_s(rows: dict[str, list[Sample]]) -> float | None:
    """The longest of the sources' usual gaps; None with fewer than three rows in each."""
    gaps = []
    for samples in rows.values():
        times_s = np.unique([s.monotonic_s for s in samples])
        if len(times_s) >= 3:
            gaps.append(float(np.median(np.diff(times_s[-200:]))))
    return max(gaps, default=None)


def _unit_problems(rows: dict[str, list[Sample]]) -> list[str]:
    found = []
    for place, samples in rows.items():
        low_w, high_w = PLAUSIBLE_W.get(samples[0].channel.scope, (0.0, np.inf))
        watts = float(np.median([s.value for s in samples]))
        if watts == 0.0:
            found.append(f"{place} shows 0 W, which is no measurement")
        elif watts < low_w:
            found.append(f"{place} shows {watts:.3g} W: kilowatts? Then csv_unit: kW")
        elif watts > high_w:
            found.append(f"{place} shows {watts / 1e3:.4g} kW: is csv_unit right?")
    return found


def _repeated_problems(rows: dict[str, list[Sample]]) -> list[str]:
    found = []
    for place, samples in rows.items():
        together = samples_together(np.sort([s.monotonic_s for s in samples]))
        if together > 1:
            found.append(f"{place}: {several_under_one_name(together)}")
    return found


def _clock_problems(
    rows: dict[str, list[Sample]], now_s: float, period_s: float | None, grew: bool
) -> list[str]:
    """Of a log whose rows are not of now."""
    age_s = now_s - max(samples[-1].monotonic_s for samples in rows.values())
    if abs(age_s) <= max(5.0, STALE_ROWS * (period_s or 0.0)):
        return []
    if not grew:
        grows = "it did not grow while it was watched"
        return [f"its latest row is {_ago(age_s)}, and {grows}: is it being written?"]
    quarters = age_s / ZONE_STEP_S
    text = f"its rows are {_ago(age_s)} when they come"
    near = abs(quarters - round(quarters)) * ZONE_STEP_S
    if round(quarters) and near <= max(5.0, STALE_ROWS * (period_s or 0.0)):
        return [
            f"{text}, which is what a local time taken for UTC, or for another zone, looks like: "
            "write times with their offset, or declare measure_ab.meters.csv_time_zone"
        ]
    return [f"{text}: set the logger's clock, or have it written without delay"]


def _ago(age_s: float) -> str:
    size, unit = (abs(age_s), "s") if abs(age_s) < 120 else (abs(age_s) / 60, "min")
    if size > 119 and unit == "min":
        size, unit = size / 60, "h"
    return f"{size:.1f} {unit} {'old' if age_s >= 0 else 'in the future'}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
