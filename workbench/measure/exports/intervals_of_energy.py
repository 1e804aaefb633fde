"""Rows of energy over an interval (codecarbon, zeus), which become a counter.

It falls back to 0 where the intervals do not join, so that no window is told across a pause. A row
is of the end of its interval, so the counter is not late.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from workbench.errors import ConfigError
from workbench.measure.exports.log import ExportedSample
from workbench.measure.exports.reading import (
    FormReading,
    column_named,
    learn_from,
    samples_of_rows,
    table_with,
)
from workbench.measure.meters.sample import SampleKind, Scope
from workbench.paths import shown
from workbench.wording.counts import number_of

JOINED_S = 0.05
"""Intervals that follow each other this closely are one counter's."""


def read_codecarbon(reading: FormReading) -> Iterator[ExportedSample]:
    """A row is the energy since its run began: rows of one run are a counter."""
    wanted = [["timestamp"], ["duration"], ["run_id"], ["energy_consumed"]]
    table, names = table_with(reading, wanted)
    if absent := {some[0] for some in wanted} - set(names):
        raise ConfigError(
            f"{shown(reading.path)}: no column {', '.join(sorted(absent))}",
            allowed="emissions.csv as codecarbon writes it",
        )
    if reading.options.scope is not None:
        reading.scope("cpu", True)
    at = {name: names.index(name) for name in names}
    learn_from(reading, table, [at["timestamp"]], [at["duration"]])
    parts: list[tuple[str, str, Scope, SampleKind]] = [
        ("cpu_energy", "cpu", "cpu", "modelled"),
        ("ram_energy", "ram", "cpu", "modelled"),
        ("gpu_energy", "gpu", "gpu", "measured"),
    ]
    begun: set[str] = set()
    reading.notes.append(
        "codecarbon's processor and memory are called modelled: without RAPL it takes them from "
        "tables, and the file does not say which"
    )
    for line, cells in table.rows():
        if len(cells) != len(table.header):
            reading.fault(
                line, f"{number_of(len(cells), 'field')}, the header has {len(table.header)}"
            )
            continue
        try:
            end_s = reading.times.unix_s(cells[at["timestamp"]])
            duration_s = reading.numbers.value(cells[at["duration"]])[0]
            run = cells[at["run_id"]]
            pue = reading.numbers.value(cells[at["pue"]])[0] if "pue" in at else 1.0
            found = [
                (place, scope, kind, reading.si(reading.numbers.value(cells[at[name]])[0], "kWh"))
                for name, place, scope, kind in parts
                if name in at
            ]
        except ValueError as error:
            reading.fault(line, error)
            continue
        if pue != 1.0:
            raise ConfigError(
                f"{shown(reading.path)}: row {line} was written with a PUE of {pue:g}, which may "
                "be in its energies or not",
                allowed="rows with a PUE of 1; the facility's share is added by report.cost.pue",
                next_step="write the file with pue=1.0",
            )
        first = run not in begun
        begun.add(run)
        for place, scope, kind, joules in found:
            if joules == 0.0 and place == "gpu":
                continue
            channel = reading.channel(place, "energy", scope, kind, lag_s=0.0)
            if first:
                yield ExportedSample(place, end_s - duration_s, 0.0, channel)
            yield ExportedSample(place, end_s, joules, channel)


def read_zeus(reading: FormReading) -> Iterator[ExportedSample]:
    """Windows with their energy, or a power monitor's wide table."""
    table, names = table_with(reading, [["start_time", "time"]])
    gpus = [at for at, name in enumerate(names) if re.fullmatch(r"gpu\d+_energy", name)]
    scope = reading.scope("gpu", True)
    if not gpus:
        at_time = column_named(names, "start_time", "time")
        assert at_time is not None
        wide: list[tuple[int, str, str | None]] = [
            (at, name, None) for at, name in enumerate(table.header) if at != at_time
        ]
        yield from samples_of_rows(reading, table, at_time, [], wide, scope)
        return
    start, elapsed = column_named(names, "start_time"), column_named(names, "elapsed_time")
    if start is None or elapsed is None:
        raise ConfigError(
            f"{shown(reading.path)}: its columns are {', '.join(table.header)}",
            allowed="start_time, window_name, elapsed_time, gpu0_energy, as zeus writes them",
        )
    windows: list[tuple[float, float, list[float]]] = []
    for line, cells in table.rows():
        if len(cells) != len(table.header):
            reading.fault(
                line, f"{number_of(len(cells), 'field')}, the header has {len(table.header)}"
            )
            continue
        try:
            reading.numbers.decimal = reading.numbers.decimal or "."
            begin_s = reading.times.unix_s(cells[start])
            length_s = reading.numbers.value(cells[elapsed])[0]
            joules = [reading.si(reading.numbers.value(cells[at])[0], "J") for at in gpus]
            if length_s <= 0:
                raise ValueError("a window without length")
        except ValueError as error:
            reading.fault(line, error)
            continue
        windows.append((begin_s, begin_s + length_s, joules))
    windows.sort(key=lambda one: (one[0], -one[1]))
    finest = [
        one for one, after in zip(windows, [*windows[1:], None], strict=True)
        if after is None or after[0] >= one[1] - JOINED_S
    ]  # fmt: skip
    if len(finest) < len(windows):
        reading.notes.append(
            f"{number_of(len(windows) - len(finest), 'window overlaps', 'windows overlap')} "
            "shorter ones within them and are left out: their energy is in those as well"
        )
    before_s, sums = -math.inf, [0.0] * len(gpus)
    for begin_s, end_s, joules in finest:
        if begin_s - before_s > JOINED_S:
            sums = [0.0] * len(gpus)  # falls back to 0, so that no window is told across the pause
            for at, place in enumerate(names[g].removesuffix("_energy") for g in gpus):
                channel = reading.channel(place, "energy", scope, lag_s=0.0)
                yield ExportedSample(place, begin_s, sums[at], channel)
        before_s = end_s
        sums = [total + one for total, one in zip(sums, joules, strict=True)]
        for at, place in enumerate(names[g].removesuffix("_energy") for g in gpus):
            channel = reading.channel(place, "energy", scope, lag_s=0.0)
            yield ExportedSample(place, end_s, sums[at], channel)
