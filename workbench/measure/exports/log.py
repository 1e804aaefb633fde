"""A power log read afterwards: its channels with their samples, or why it is refused.

Every row that is no sample is counted by its kind and leaves a gap. What would give a wrong number
from whole rows is refused: several things under one name, a total beside its parts, a meter that is
there twice, a unit that cannot be right or that changes, no zone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import numpy as np

from workbench.errors import ConfigError
from workbench.measure.meters.faults import MeterFaults
from workbench.measure.meters.log_check import PLAUSIBLE_W
from workbench.measure.meters.sample import Channel
from workbench.measure.meters.window import samples_together, several_under_one_name
from workbench.paths import shown
from workbench.wording.counts import number_of

FEW = 0.05
"""Share of the rows that may be written twice; more are several things under one name."""
ALIKE = 1e-3
"""Series that agree so well at all their times are one meter, or a total and its parts."""
FEWEST_ALIKE = 10
"""Different values that a series must show before being alike says anything."""
UNIT_STEP = (300.0, 3000.0)
"""From one row to the next no machine's power grows by this; a unit that changes does."""


@dataclass(frozen=True)
class ExportedSample:
    """One sample of an export. value: in W or J."""

    source: str
    unix_s: float
    value: float
    channel: Channel


@dataclass(frozen=True)
class Series:
    """One channel. times_s: Unix times, ascending. values: W or J."""

    channel: Channel
    times_s: np.ndarray
    values: np.ndarray

    @property
    def span_s(self) -> tuple[float, float]:
        return float(self.times_s[0]), float(self.times_s[-1])

    @property
    def period_s(self) -> float | None:
        """The usual gap between rows, None with fewer than two."""
        gaps_s = np.diff(self.times_s)
        return float(np.median(gaps_s)) if len(gaps_s) else None

    @property
    def mean_w(self) -> float | None:
        """Over its rows; of a counter over the time in which it grew. None where it did not."""
        if self.channel.quantity == "power":
            return float(self.values.mean())
        steps_j, steps_s = np.diff(self.values), np.diff(self.times_s)
        grew = steps_j >= 0
        length_s = float(steps_s[grew].sum())
        return float(steps_j[grew].sum()) / length_s if length_s > 0 else None

    def within(self, start_s: float, end_s: float) -> Series:
        inside = (self.times_s >= start_s) & (self.times_s <= end_s)
        return replace(self, times_s=self.times_s[inside], values=self.values[inside])


@dataclass
class PowerLog:
    """What was read of one file. notes: what was left out or taken for granted, for a person."""

    path: Path
    form: str
    series: list[Series]
    faults: MeterFaults
    notes: list[str] = field(default_factory=list)

    @property
    def span_s(self) -> tuple[float, float]:
        spans = [one.span_s for one in self.series]
        return min(s for s, _ in spans), max(e for _, e in spans)


def power_log(
    path: Path,
    form: str,
    readings: Iterable[ExportedSample],
    faults: MeterFaults,
    notes: Sequence[str] = (),
    sources: Sequence[str] = (),
) -> PowerLog:
    """The log of what a form read. sources: these alone; all where empty.

    Raises ConfigError where it holds no sample, or is not what a sum could be made of.
    """
    gathered: dict[Channel, list[tuple[float, float]]] = defaultdict(list)
    total, names = 0, dict.fromkeys(sources, False)
    for one in readings:
        total += 1
        if sources:
            if one.source not in names:
                continue
            names[one.source] = True
        gathered[one.channel].append((one.unix_s, one.value))
    if absent := [name for name, seen in names.items() if not seen]:
        known = ", ".join(channel.place for channel in gathered) or "none of the named ones"
        raise ConfigError(f"{shown(path)}: no source {absent[0]!r}", allowed=f"read were: {known}")
    log = PowerLog(path, form, [], faults, list(notes))
    log.series = [_sorted(log, channel, rows) for channel, rows in gathered.items()]
    if not log.series:
        raise ConfigError(
            f"{shown(path)}: no row of {total + len(faults)} is a sample"
            + (f": {faults.text()}" if len(faults) else ""),
            allowed="rows with a time and a power, as --format says",
            next_step="see whether --format and --columns name what the file is",
        )
    if len(faults) > total:
        raise ConfigError(
            f"{shown(path)}: {number_of(len(faults), 'row')} of {total + len(faults)} are no "
            f"samples: {faults.text()}",
            allowed="a file most of whose rows can be read",
            next_step="see whether --format, --columns and --decimal say what the file is",
        )
    _require_one_unit(log)
    _require_single_things(log)
    log.series = _without_mirrors(log)
    _require_parts_alone(log)
    return log


def _sorted(log: PowerLog, channel: Channel, rows: list[tuple[float, float]]) -> Series:
    """In the order of their times; a few rows that are written twice count once, and a power of 0
    among others is a dropout."""
    table = np.array(rows)
    times_s, values = table[:, 0], table[:, 1]
    back = int(np.count_nonzero(np.diff(times_s) < 0))
    for _ in range(back):
        log.faults.add(0.0, f"{channel.place}: a row that is out of order, put in its place")
    order = np.argsort(times_s, kind="stable")
    times_s, values = times_s[order], values[order]
    twice = np.concatenate([[False], (np.diff(times_s) == 0) & (np.diff(values) == 0)])
    if 0 < twice.sum() <= FEW * len(values):
        for _ in range(int(twice.sum())):
            log.faults.add(0.0, f"{channel.place}: a row that is there twice, counted once")
        times_s, values = times_s[~twice], values[~twice]
    if channel.quantity == "power":
        zero = values == 0
        if zero.any() and not zero.all():
            for _ in range(int(zero.sum())):
                log.faults.add(0.0, f"{channel.place}: 0 W, which is no measurement")
            times_s, values = times_s[~zero], values[~zero]
    return Series(channel, times_s, values)


def _require_one_unit(log: PowerLog) -> None:
    for one in log.series:
        if one.channel.quantity != "power":
            continue
        watts = one.values
        if (watts > 0).all() and len(watts) > 1:
            steps = np.abs(np.diff(np.log(watts)))
            odd = np.flatnonzero((steps > np.log(UNIT_STEP[0])) & (steps < np.log(UNIT_STEP[1])))
            if len(odd):
                before, after = watts[odd[0]], watts[odd[0] + 1]
                raise ConfigError(
                    f"{shown(log.path)}: {one.channel.place} goes from {before:.4g} W to "
                    f"{after:.4g} W in one row: its unit changes",
                    allowed="one unit for each source, or units in the cells",
                    next_step="cut the file where the unit changes, and import the part of the run",
                )
        low_w, high_w = PLAUSIBLE_W.get(one.channel.scope, (0.0, np.inf))
        usual_w = float(np.median(watts))
        if low_w <= usual_w <= high_w and usual_w > 0:
            continue
        guess = "kilowatts? Then --unit kW" if usual_w < low_w else "is the unit right?"
        guess = "0 W is no measurement" if usual_w == 0 else guess
        raise ConfigError(
            f"{shown(log.path)}: {one.channel.place} shows {usual_w:.4g} W: {guess}",
            allowed=f"{low_w:g} to {high_w:g} W of a source of scope {one.channel.scope}",
            next_step="give --unit (W, kW, mW) or --scope as it is",
        )


def _require_single_things(log: PowerLog) -> None:
    for one in log.series:
        if (together := samples_together(one.times_s)) > 1:
            raise ConfigError(
                f"{shown(log.path)}: {one.channel.place}: {several_under_one_name(together)}",
                allowed="one row of a source at a time",
                next_step="name the column that tells them apart: --columns source=NAME",
            )


def _common(one: Series, other: Series) -> tuple[np.ndarray, np.ndarray]:
    """Values of both at the times of the first, where both are."""
    inside = (one.times_s >= other.times_s[0]) & (one.times_s <= other.times_s[-1])
    at_s = one.times_s[inside]
    return one.values[inside], np.interp(at_s, other.times_s, other.values)


def _tells(values: np.ndarray) -> bool:
    return len(np.unique(values)) >= FEWEST_ALIKE


def _without_mirrors(log: PowerLog) -> list[Series]:
    """Two counters that show the same at all times are one; two powers that do are refused, for
    which of them is left out may matter."""
    left_out: set[Channel] = set()
    for one, other in combinations(log.series, 2):
        a, b = one.channel, other.channel
        if (a.quantity, a.scope) != (b.quantity, b.scope) or a in left_out or b in left_out:
            continue
        values, others = _common(one, other)
        if not _tells(values) or not np.allclose(values, others, rtol=1e-9, atol=1e-9):
            continue
        if a.quantity == "energy":
            left_out.add(b)
            log.notes.append(f"{b.place} shows the counter of {a.place} again and is not added")
            continue
        raise ConfigError(
            f"{shown(log.path)}: {a.place} and {b.place} show the same at all times: one meter "
            "under two names?",
            allowed="each feed once",
            next_step=f"name those that are to be summed, such as --source {a.place!r}",
        )
    return [one for one in log.series if one.channel not in left_out]


def _require_parts_alone(log: PowerLog) -> None:
    """A column that is the sum of the others beside it would count everything twice."""
    powers = [one for one in log.series if one.channel.quantity == "power"]
    if len(powers) < 3:
        return
    for total in powers:
        parts = [o for o in powers if o is not total and o.channel.scope == total.channel.scope]
        if len(parts) < 2:
            continue
        values = _common(total, parts[0])[0]
        each = [_common(total, part)[1] for part in parts]
        if any(len(one) != len(values) for one in each):
            continue
        summed = np.sum(each, axis=0)
        if len(values) >= 3 and float(np.median(np.abs(summed / values - 1))) < 10 * ALIKE:
            names = ", ".join(part.channel.place for part in parts)
            raise ConfigError(
                f"{shown(log.path)}: {total.channel.place} is the sum of {names}: everything would "
                "count twice",
                allowed="a total, or its parts",
                next_step=f"--source {total.channel.place!r}, or --source for each of the parts",
            )


def with_response(log: PowerLog, lag_s: float | None, averaging_s: float | None) -> PowerLog:
    """With a lag and an averaging that are declared; what is None stays as it is."""

    def declared(channel: Channel) -> Channel:
        late_s = channel.lag_s if lag_s is None else lag_s
        if channel.quantity != "power":
            return replace(channel, lag_s=late_s)
        return replace(
            channel,
            lag_s=late_s,
            averaging_s=channel.averaging_s if averaging_s is None else averaging_s,
        )

    series = [replace(one, channel=declared(one.channel)) for one in log.series]
    return replace(log, series=series)


def utc_text(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S}"


def _period_text(one: Series) -> str:
    period_s = one.period_s
    return "one row" if period_s is None else f"a row every {period_s:.3g} s"


def summary(log: PowerLog) -> list[str]:
    """What was read, a line a source."""
    lines = []
    for one in log.series:
        begin_s, end_s = one.span_s
        mean = "-" if one.mean_w is None else f"{one.mean_w:.4g} W on average"
        lines.append(
            f"{one.channel.place}: {one.channel.quantity} of scope {one.channel.scope} "
            f"({one.channel.kind}), {number_of(len(one.times_s), 'row')}, {_period_text(one)}, "
            f"{mean}, {utc_text(begin_s)} to {utc_text(end_s)} UTC"
        )
    powers = [one.mean_w for one in log.series if one.mean_w is not None]
    if len(powers) > 1 and len({one.channel.scope for one in log.series}) == 1:
        scope = log.series[0].channel.scope
        lines.append(
            f"{number_of(len(powers), 'source')} of scope {scope} together: {np.sum(powers):.4g} W"
        )
    if len(log.faults):
        lines.append(f"no samples: {log.faults.text()}")
    return [*lines, *log.notes]
