"""The JSON with which Prometheus answers a query of a range."""

from __future__ import annotations

import json
from collections.abc import Iterator

from workbench.errors import ConfigError
from workbench.measure.exports.cells import to_si
from workbench.measure.exports.log import ExportedSample
from workbench.measure.exports.reading import FormReading
from workbench.measure.exports.text import text_of
from workbench.measure.meters.prometheus import KNOWN
from workbench.measure.meters.sample import Scope
from workbench.paths import shown
from workbench.pilot.sections.meters import PROMETHEUS_SCOPES

PROMETHEUS: dict[str, tuple[str, Scope]] = {
    **{name: (known.unit, PROMETHEUS_SCOPES[name]) for name, known in KNOWN.items()},
    "nvidia_smi_power_draw_watts": ("W", "gpu"),
    "kepler_node_cpu_watts": ("W", "cpu"),
}
"""Known metric -> unit and scope."""
ZONES = {"package", "dram"}
"""Of RAPL and kepler: cores lie inside their package, psys around everything."""
_TELLING = ("UUID", "gpu", "GPU", "zone", "index", "path", "instance", "Hostname", "node", "outlet")


def read_prometheus(reading: FormReading) -> Iterator[ExportedSample]:
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


def _metric(reading: FormReading, metric: str) -> tuple[str, Scope]:
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
