"""What every form of an export is read with: the declared options, its table, and rows of power."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.measure.exports.cells import CellNumbers, CellTimes, DateOrder, Decimal, to_si
from workbench.measure.exports.log import ExportedSample
from workbench.measure.exports.text import ExportTable, table_of, text_of
from workbench.measure.meters.faults import MeterFaults
from workbench.measure.meters.sample import Channel, SampleKind, Scope
from workbench.paths import shown
from workbench.wording.counts import number_of

LEARNED_FROM = 2000
"""Rows that tell the decimal mark and the order of dates."""


@dataclass(frozen=True)
class Options:
    """What a person declares of a file. columns: role -> the file's own names; the roles are
    timestamp, source, power and energy, and several powers are as many sources."""

    columns: dict[str, list[str]] = field(default_factory=dict)
    unit: str | None = None
    zone: str | None = None
    scope: Scope | None = None
    sources: tuple[str, ...] = ()
    decimal: Decimal | None = None
    date_order: DateOrder | None = None


class FormReading:
    """Of one file: the declared options, and where faults go."""

    def __init__(self, path: Path, form: str, options: Options) -> None:
        self.path, self.form, self.options = path, form, options
        self.times = CellTimes(options.zone, options.date_order)
        self.numbers = CellNumbers(options.decimal)
        self.faults = MeterFaults()
        self.notes: list[str] = []
        self._channels: dict[tuple[str, str], Channel] = {}

    def channel(
        self, place: str, quantity: Any, scope: Scope, kind: SampleKind = "measured", **about: Any
    ) -> Channel:
        key = (place, quantity)
        if key not in self._channels:
            self._channels[key] = Channel(self.form, place, scope, quantity, kind, **about)
        return self._channels[key]

    def scope(self, usual: Scope, only: bool = False) -> Scope:
        """Raises ConfigError where a form sees one thing and another is declared."""
        declared = self.options.scope
        if declared and only and declared != usual:
            raise ConfigError(
                f"--scope {declared}: {self.form} shows {usual} alone",
                allowed=f"--scope {usual}",
                next_step="import the log of a wall meter for the whole node",
            )
        return declared or usual

    def fault(self, line: int, error: object) -> None:
        self.faults.add(0.0, f"row {line}: {error}")

    def si(self, value: float, unit: str) -> float:
        found = value * to_si(unit)[1]
        if not math.isfinite(found) or found < 0:
            raise ValueError("negative or not finite")
        return found


def table_with(
    reading: FormReading,
    wanted: Sequence[Sequence[str]],
    also: Callable[[list[str]], bool] = lambda _: True,
) -> tuple[ExportTable, list[str]]:
    """The table and its lowered names; declared names are looked for instead of ``wanted``."""
    declared = [[name.lower()] for names in reading.options.columns.values() for name in names]
    table = table_of(reading.path, text_of(reading.path), declared or wanted, also)
    return table, [name.lower() for name in table.header]


def learn_from(
    reading: FormReading, table: ExportTable, times: Sequence[int], values: Sequence[int]
) -> None:
    first = islice(table.rows(), LEARNED_FROM)
    whole = [cells for _, cells in first if len(cells) == len(table.header)]
    reading.times.learn([cells[at] for cells in whole for at in times])
    reading.numbers.learn([cells[at] for cells in whole for at in values])


def column_named(names: Sequence[str], *wanted: str) -> int | None:
    """The place of the first column whose name begins with one of ``wanted``."""
    for some in wanted:
        for at, name in enumerate(names):
            if name.startswith(some):
                return at
    return None


def columns_named(names: Sequence[str], *wanted: str) -> list[int]:
    at = column_named(names, *wanted)
    return [] if at is None else [at]


def declared_columns(reading: FormReading, names: Sequence[str], role: str) -> list[int]:
    """Places of the columns declared for a role; ConfigError where the file has none so named."""
    found = []
    for wanted in reading.options.columns.get(role, []):
        if wanted.lower() not in names:
            raise ConfigError(
                f"--columns {role}={wanted}: {shown(reading.path)} has no such column",
                allowed=", ".join(names),
            )
        found.append(names.index(wanted.lower()))
    return found


def samples_of_rows(
    reading: FormReading,
    table: ExportTable,
    at_time: int,
    at_source: Sequence[int],
    at_values: Sequence[tuple[int, str, str | None]],
    scope: Scope,
    unit: str = "W",
    **about: Any,
) -> Iterator[ExportedSample]:
    """Readings of rows. at_values: (column, its source where the rows name none, its unit)."""
    learn_from(reading, table, [at_time], [at for at, _, _ in at_values])
    for line, cells in table.rows():
        if len(cells) != len(table.header):
            reading.fault(
                line, f"{number_of(len(cells), 'field')}, the header has {len(table.header)}"
            )
            continue
        named = " ".join(cells[at] for at in at_source)
        try:
            unix_s = reading.times.unix_s(cells[at_time], named)
        except ValueError as error:
            reading.fault(line, error)
            continue
        for at, column, stated in at_values:
            source = named if at_source else column
            try:
                value, in_cell = reading.numbers.value(cells[at])
                own = in_cell or reading.options.unit or stated or unit
                value_si = reading.si(value, own)
            except ValueError as error:
                reading.fault(line, f"{source or 'source'}: {error}")
                continue
            channel = reading.channel(source or "log", to_si(own)[0], scope, **about)
            yield ExportedSample(source, unix_s, value_si, channel)
