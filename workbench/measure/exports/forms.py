"""The forms in which power comes: one function each, from a file's text to its readings.

A form knows what its program writes and nothing else: which columns, which unit, what the value
covers, and whether it is measured at all. nvidia-smi and zeus see GPU boards, DCMI the node through
its board controller; codecarbon adds what it models for processors without RAPL. Rows of energy
over an interval (codecarbon, zeus) become a counter, which falls back to 0 where the intervals do
not join, so that no window is told across a pause.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from workbench.errors import ConfigError
from workbench.measure.exports.cells import (
    CellNumbers,
    CellTimes,
    DateOrder,
    Decimal,
    header_unit,
    known_unit,
    to_si,
)
from workbench.measure.exports.log import ExportedSample, PowerLog, power_log
from workbench.measure.exports.text import ExportTable, table_of, text_of
from workbench.measure.meters.faults import MeterFaults
from workbench.measure.meters.prometheus import KNOWN
from workbench.measure.meters.recording import is_recording, read_recording, row_channel
from workbench.measure.meters.sample import Channel, SampleKind, Scope
from workbench.paths import shown
from workbench.pilot.sections.meters import PROMETHEUS_SCOPES

LEARNED_FROM = 2000
"""Rows that tell the decimal mark and the order of dates."""
JOINED_S = 0.05
"""Intervals that follow each other this closely are one counter's."""


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


class _Reading:
    """What every form needs: the declared options and where faults go."""

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


def read_export(path: Path, form: str, options: Options) -> PowerLog:
    """Raises ConfigError for a file that is not of the form, or would give a wrong number."""
    if is_recording(path):
        form = "recording"
    if form not in FORMS:
        raise ConfigError(
            f"--format {form}: no such form", allowed=", ".join(FORMS), next_step="name one of them"
        )
    if options.unit is not None and known_unit(options.unit) is None:
        raise ConfigError(
            f"--unit {options.unit}: no unit of power or energy", allowed="W, kW, mW, J, Wh, kWh"
        )
    if options.scope is not None and options.scope not in get_args(Scope):
        raise ConfigError(f"--scope {options.scope}", allowed=", ".join(get_args(Scope)))
    reading = _Reading(path, form, options)
    readings = list(FORMS[form](reading))
    return power_log(path, form, readings, reading.faults, reading.notes, options.sources)


def _table(
    reading: _Reading,
    wanted: Sequence[Sequence[str]],
    also: Callable[[list[str]], bool] = lambda _: True,
) -> tuple[ExportTable, list[str]]:
    """The table and its lowered names; declared names are looked for instead of ``wanted``."""
    declared = [[name.lower()] for names in reading.options.columns.values() for name in names]
    table = table_of(reading.path, text_of(reading.path), declared or wanted, also)
    return table, [name.lower() for name in table.header]


def _learn(
    reading: _Reading, table: ExportTable, times: Sequence[int], values: Sequence[int]
) -> None:
    first = islice(table.rows(), LEARNED_FROM)
    whole = [cells for _, cells in first if len(cells) == len(table.header)]
    reading.times.learn([cells[at] for cells in whole for at in times])
    reading.numbers.learn([cells[at] for cells in whole for at in values])


def _column(names: Sequence[str], *wanted: str) -> int | None:
    """The place of the first column whose name begins with one of ``wanted``."""
    for some in wanted:
        for at, name in enumerate(names):
            if name.startswith(some):
                return at
    return None


def _columns(names: Sequence[str], *wanted: str) -> list[int]:
    at = _column(names, *wanted)
    return [] if at is None else [at]


def _declared(reading: _Reading, names: Sequence[str], role: str) -> list[int]:
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


def _long(
    reading: _Reading,
    table: ExportTable,
    at_time: int,
    at_source: Sequence[int],
    at_values: Sequence[tuple[int, str, str | None]],
    scope: Scope,
    unit: str = "W",
    **about: Any,
) -> Iterator[ExportedSample]:
    """Readings of rows. at_values: (column, its source where the rows name none, its unit)."""
    _learn(reading, table, [at_time], [at for at, _, _ in at_values])
    for line, cells in table.rows():
        if len(cells) != len(table.header):
            reading.fault(line, f"{len(cells)} fields, the header has {len(table.header)}")
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


def _csv(reading: _Reading) -> Iterator[ExportedSample]:
    times, powers = ("timestamp", "time", "date"), ("watts", "power", "value", "energy", "joules")
    table, names = _table(reading, [times, powers])
    at_time = _declared(reading, names, "timestamp") or _columns(names, *times)
    at_source = _declared(reading, names, "source")
    at_values = _declared(reading, names, "power") + _declared(reading, names, "energy")
    if not reading.options.columns:
        at_source = _columns(names, "source", "device", "name", "meter")
        at_values = _columns(names, *powers)
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
    yield from _long(reading, table, at_time[0], at_source, values, reading.scope("node"))


def _nvidia_smi(reading: _Reading) -> Iterator[ExportedSample]:
    table, names = _table(reading, [["timestamp"], ["power.draw"]])
    at_time, at_power = _column(names, "timestamp"), _column(names, "power.draw.instant",
                                                             "power.draw")  # fmt: skip
    told = _columns(names, "index", "uuid", "pci.bus_id", "gpu_bus_id", "serial")
    assert at_time is not None and at_power is not None
    _, unit = header_unit(table.header[at_power])
    if not told:
        reading.notes.append("no column tells the GPUs apart (index, uuid)")
    scope = reading.scope("gpu", True)
    yield from _long(reading, table, at_time, told, [(at_power, "gpu", unit)], scope)


def _grafana(reading: _Reading) -> Iterator[ExportedSample]:
    table, names = _table(reading, [["time"]])
    (at_time, *_) = _declared(reading, names, "timestamp") or _columns(names, "time")
    series, value = _column(names, "series", "metric"), _column(names, "value")
    if series is not None and value is not None:
        yield from _long(
            reading, table, at_time, [series], [(value, "", None)], reading.scope("node")
        )
        return
    wide = []
    for at, name in enumerate(table.header):
        if at != at_time:
            place, unit = header_unit(name)
            wide.append((at, place, unit))
    if declared := _declared(reading, names, "power"):
        wide = [one for one in wide if one[0] in declared]
    stated = {unit for _, _, unit in wide if unit}
    if not stated and reading.options.unit is None:
        reading.notes.append("no column says its unit: read as W; --unit declares it")
    yield from _long(reading, table, at_time, [], wide, reading.scope("node"))


PROMETHEUS: dict[str, tuple[str, Scope]] = {
    **{name: (known.unit, PROMETHEUS_SCOPES[name]) for name, known in KNOWN.items()},
    "nvidia_smi_power_draw_watts": ("W", "gpu"),
    "kepler_node_cpu_watts": ("W", "cpu"),
}
"""Known metric -> unit and scope."""
ZONES = {"package", "dram"}
"""Of RAPL and kepler: cores lie inside their package, psys around everything."""
_TELLING = ("UUID", "gpu", "GPU", "zone", "index", "path", "instance", "Hostname", "node", "outlet")


def _prometheus(reading: _Reading) -> Iterator[ExportedSample]:
    try:
        answer = json.loads(text_of(reading.path))
        if answer.get("status") == "error":
            raise ValueError(f"it holds an error: {answer.get('error')}")
        data = answer["data"]
        kind, results = data["resultType"], data["result"]
        if kind != "matrix":
            raise ValueError(f"its result is a {kind}: one value, not a series")
        if not isinstance(results, list):
            raise ValueError("its result is no list")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{shown(reading.path)}: no answer of Prometheus with samples: {error}",
            allowed="the JSON of /api/v1/query_range, or of /api/v1/query with METRIC[1h]",
            next_step="query METRIC[1h] (raw samples at their own times) for the time of the run",
        ) from error
    for result in results:
        labels = result.get("metric", {}) if isinstance(result, dict) else {}
        if not isinstance(labels, dict):
            labels = {}
        metric = str(labels.get("__name__", ""))
        zone = str(labels.get("zone", ""))
        if zone and not any(zone.startswith(kept) for kept in ZONES):
            reading.notes.append(f"zone {zone} lies inside or around others and is not added")
            continue
        unit, scope = _metric(reading, metric)
        told = [f"{labels[name]}" for name in _TELLING if labels.get(name)]
        place = " ".join([metric or "series", *told])
        values = result.get("values") if isinstance(result, dict) else None
        for number, pair in enumerate(values if isinstance(values, list) else [], start=1):
            try:
                at, text = pair
                value = reading.si(float(text), unit)
                unix_s = reading.times.unix_s(str(at))
            except (ValueError, TypeError) as error:
                reading.fault(number, f"{place}: {error}")
                continue
            channel = reading.channel(place, to_si(unit)[0], scope)
            yield ExportedSample(place, unix_s, value, channel)


def _metric(reading: _Reading, metric: str) -> tuple[str, Scope]:
    unit, usual = PROMETHEUS.get(metric, ("", None))
    for ending, told in (("_joules_total", "J"), ("_watts", "W"), ("_watt", "W"),
                         ("_milliwatts", "mW"), ("_kilowatts", "kW")):  # fmt: skip
        if not unit and metric.endswith(ending):
            unit = told
    unit = reading.options.unit or unit
    if not unit:
        raise ConfigError(
            f"{shown(reading.path)}: {metric or 'a series without a name'} does not say its unit",
            allowed=", ".join(PROMETHEUS),
            next_step="add --unit W (or kW, J, mJ)",
        )
    scope = reading.options.scope or usual
    if scope is None:
        raise ConfigError(
            f"{shown(reading.path)}: what {metric or 'the series'} covers is not known",
            allowed="a declared scope where the metric is none of " + ", ".join(PROMETHEUS),
            next_step="add --scope node (the machine at its inlet), gpu, cpu, rack, it or facility",
        )
    return unit, scope


def _codecarbon(reading: _Reading) -> Iterator[ExportedSample]:
    """A row is the energy since its run began: rows of one run are a counter."""
    wanted = [["timestamp"], ["duration"], ["run_id"], ["energy_consumed"]]
    table, names = _table(reading, wanted)
    if absent := {some[0] for some in wanted} - set(names):
        raise ConfigError(
            f"{shown(reading.path)}: no column {', '.join(sorted(absent))}",
            allowed="emissions.csv as codecarbon writes it",
        )
    if reading.options.scope is not None:
        reading.scope("cpu", True)
    at = {name: names.index(name) for name in names}
    _learn(reading, table, [at["timestamp"]], [at["duration"]])
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
            reading.fault(line, f"{len(cells)} fields, the header has {len(table.header)}")
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


def _zeus(reading: _Reading) -> Iterator[ExportedSample]:
    """Windows with their energy, or a power monitor's wide table."""
    table, names = _table(reading, [["start_time", "time"]])
    gpus = [at for at, name in enumerate(names) if re.fullmatch(r"gpu\d+_energy", name)]
    scope = reading.scope("gpu", True)
    if not gpus:
        at_time = _column(names, "start_time", "time")
        assert at_time is not None
        wide: list[tuple[int, str, str | None]] = [
            (at, name, None) for at, name in enumerate(table.header) if at != at_time
        ]
        yield from _long(reading, table, at_time, [], wide, scope)
        return
    start, elapsed = _column(names, "start_time"), _column(names, "elapsed_time")
    if start is None or elapsed is None:
        raise ConfigError(
            f"{shown(reading.path)}: its columns are {', '.join(table.header)}",
            allowed="start_time, window_name, elapsed_time, gpu0_energy, as zeus writes them",
        )
    windows: list[tuple[float, float, list[float]]] = []
    for line, cells in table.rows():
        if len(cells) != len(table.header):
            reading.fault(line, f"{len(cells)} fields, the header has {len(table.header)}")
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
            f"{len(windows) - len(finest)} windows overlap shorter ones within them and are left "
            "out: their energy is in those as well"
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


_DCMI_POWER = re.compile(r"Instantaneous power reading:\s*(\S+)\s*Watts?", re.I)
_DCMI_TIME = re.compile(r"IPMI timestamp:\s*(.+?)(?=\s{2,}Sampling|\s*$)", re.I)
_DCMI_STATE = re.compile(r"Power reading state is:\s*(\S+)", re.I)


def _dcmi(reading: _Reading) -> Iterator[ExportedSample]:
    """A loop of ``ipmitool dcmi power reading``: the time is the line before a reading (``date``),
    which is this machine's, or the BMC's own, which often stands at 1970."""
    scope = reading.scope("node", True)
    lines = text_of(reading.path).splitlines()
    before: str | None = None
    block: dict[str, str] = {}
    begun = 0

    def ended(line: int) -> Iterator[ExportedSample]:
        if "power" not in block:
            return
        own = before if before is not None else block.get("time")
        try:
            if block.get("state", "activated").lower() != "activated":
                raise ValueError(f"power reading is {block['state']!r}")
            if own is None:
                raise ValueError("a reading without a time")
            watts = float(block["power"])
            if watts == 0:
                raise ValueError("0 W, which is no measurement")
            value = reading.si(watts, "W")
            unix_s = reading.times.unix_s(own)
        except ValueError as error:
            reading.fault(line, error)
            return
        yield ExportedSample(
            "bmc", unix_s, value, reading.channel("bmc", "power", scope, resolution=1.0)
        )

    reading.times.learn([line.strip() for line in lines[:LEARNED_FROM]])
    pending: str | None = None
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if found := _DCMI_POWER.search(text):
            yield from ended(begun)
            before, pending, begun = pending, None, number
            block = {"power": found[1]}
        elif ":" in text and re.match(r"(Min|Max|Average|IPMI|Sampling|Power)", text):
            if found := _DCMI_TIME.search(text):
                block["time"] = found[1]
            if found := _DCMI_STATE.search(text):
                block["state"] = found[1].rstrip(".")
        else:
            pending = text
    yield from ended(begun)
    if before is None and block:
        reading.notes.append("times are the BMC's own clock")


def _apc(reading: _Reading) -> Iterator[ExportedSample]:
    """data.txt of an APC rack PDU or UPS card: lines of its own, then a table of tabs with the date
    and the time in two columns and powers in kW."""
    declared = bool(reading.options.columns)
    table, names = _table(
        reading, [["date"], ["time"]], lambda h: declared or any(header_unit(n)[1] for n in h)
    )
    at_date, at_clock = _column(names, "date"), _column(names, "time")
    assert at_date is not None and at_clock is not None
    values = []
    for at, name in enumerate(table.header):
        place, unit = header_unit(name)
        if at not in (at_date, at_clock) and (unit or at in _declared(reading, names, "power")):
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
    yield from _long(reading, moved, 0, [], columns, reading.scope("node"))


def _recording(reading: _Reading) -> Iterator[ExportedSample]:
    """Of ``workbench meter record``: every channel with what it declares."""
    for batch in read_recording(reading.path):
        for row in batch.to_pylist():
            if row["value"] is None:
                reading.faults.add(0.0, f"{row['reader']}: {row['fault']}")
                continue
            channel = row_channel(row)
            yield ExportedSample(channel.place, row["wall_s"], row["value"], channel)


FORMS: dict[str, Callable[[_Reading], Iterator[ExportedSample]]] = {
    "csv": _csv,
    "nvidia-smi": _nvidia_smi,
    "grafana": _grafana,
    "prometheus": _prometheus,
    "codecarbon": _codecarbon,
    "zeus": _zeus,
    "dcmi": _dcmi,
    "apc": _apc,
    "recording": _recording,
}
