"""Tables whose rows are powers at a time: CSV of any make, nvidia-smi, Grafana, APC's data log."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.errors import ConfigError
from workbench.measure.exports.cells import header_unit, to_si
from workbench.measure.exports.log import ExportedSample
from workbench.measure.exports.reading import (
    FormReading,
    column_named,
    columns_named,
    declared_columns,
    samples_of_rows,
    table_with,
)
from workbench.measure.exports.text import ExportTable
from workbench.paths import shown


def read_csv(reading: FormReading) -> Iterator[ExportedSample]:
    times, powers = ("timestamp", "time", "date"), ("watts", "power", "value", "energy", "joules")
    table, names = table_with(reading, [times, powers])
    at_time = declared_columns(reading, names, "timestamp") or columns_named(names, *times)
    at_source = declared_columns(reading, names, "source")
    at_values = declared_columns(reading, names, "power") + declared_columns(
        reading, names, "energy"
    )
    if not reading.options.columns:
        at_source = columns_named(names, "source", "device", "name", "meter")
        at_values = columns_named(names, *powers)
    if not at_time or not at_values:
        raise ConfigError(
            f"{shown(reading.path)}: its columns are {', '.join(table.header)}",
            allowed="--columns with timestamp= and power= or energy=",
            next_step="name them by the file's own names",
        )
    values = []
    for at in at_values:
        place, unit = header_unit(table.header[at])
        values.append((at, place, unit))
    yield from samples_of_rows(reading, table, at_time[0], at_source, values, reading.scope("node"))


def read_nvidia_smi(reading: FormReading) -> Iterator[ExportedSample]:
    table, names = table_with(reading, [["timestamp"], ["power.draw"]])
    at_time, at_power = column_named(names, "timestamp"), column_named(names, "power.draw.instant",
                                                             "power.draw")  # fmt: skip
    told = columns_named(names, "index", "uuid", "pci.bus_id", "gpu_bus_id", "serial")
    assert at_time is not None and at_power is not None
    _, unit = header_unit(table.header[at_power])
    if not told:
        reading.notes.append("no column tells the GPUs apart (index, uuid)")
    scope = reading.scope("gpu", True)
    yield from samples_of_rows(reading, table, at_time, told, [(at_power, "gpu", unit)], scope)


def read_grafana(reading: FormReading) -> Iterator[ExportedSample]:
    table, names = table_with(reading, [["time"]])
    (at_time, *_) = declared_columns(reading, names, "timestamp") or columns_named(names, "time")
    series, value = column_named(names, "series", "metric"), column_named(names, "value")
    if series is not None and value is not None:
        yield from samples_of_rows(
            reading, table, at_time, [series], [(value, "", None)], reading.scope("node")
        )
        return
    wide = []
    for at, name in enumerate(table.header):
        if at != at_time:
            place, unit = header_unit(name)
            wide.append((at, place, unit))
    if declared := declared_columns(reading, names, "power"):
        wide = [one for one in wide if one[0] in declared]
    stated = {unit for _, _, unit in wide if unit}
    if not stated and reading.options.unit is None:
        reading.notes.append("no column says its unit: read as W; --unit declares it")
    yield from samples_of_rows(reading, table, at_time, [], wide, reading.scope("node"))


def read_apc(reading: FormReading) -> Iterator[ExportedSample]:
    """data.txt of an APC rack PDU or UPS card: lines of its own, then a table of tabs with the date
    and the time in two columns and powers in kW."""
    declared = bool(reading.options.columns)
    table, names = table_with(
        reading, [["date"], ["time"]], lambda h: declared or any(header_unit(n)[1] for n in h)
    )
    at_date, at_clock = column_named(names, "date"), column_named(names, "time")
    assert at_date is not None and at_clock is not None
    values = []
    for at, name in enumerate(table.header):
        place, unit = header_unit(name)
        if at not in (at_date, at_clock) and (
            unit or at in declared_columns(reading, names, "power")
        ):
            if unit and to_si(unit)[0] != "power":
                continue  # a counter of tenths of kWh tells no turn
            values.append((at, place or name, unit))
    if not values:
        raise ConfigError(
            f"{shown(reading.path)}: no column of power among {', '.join(table.header)}",
            allowed="a column such as Power.kW or Pwr (kW)",
            next_step="add --columns power=NAME --unit kW",
        )
    lines = []
    for _, cells in table.rows():
        if len(cells) < len(table.header) - 1:
            lines.append(table.delimiter.join(cells))  # counted as a fault below
            continue
        cells = [*cells, ""]  # data.txt may end without its last, empty column
        powers = (cells[at] for at, _, _ in values)
        lines.append("\t".join([f"{cells[at_date]} {cells[at_clock]}", *powers]))
    header = ["timestamp", *(table.header[at] for at, _, _ in values)]
    moved = ExportTable(header, table.first_line, lines, "\t")
    columns = [(at, place, unit) for at, (_, place, unit) in enumerate(values, start=1)]
    yield from samples_of_rows(reading, moved, 0, [], columns, reading.scope("node"))
