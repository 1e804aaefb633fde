"""Prometheus: the samples that a server has scraped, at the times at which it did.

A range (``METRIC[30s]``) gives them as they are; ``query_range`` would draw them anew on a grid. A
query that is no plain selector has no samples of its own and is computed every ``period_s``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.http_json import JsonAddress
from workbench.measure.meters.sample import Channel, MeterError, MeterFault, Sample
from workbench.measure.meters.secret import from_environment
from workbench.measure.meters.units import TO_SI, quantity
from workbench.pilot.sections.meters import PrometheusMeter

LOOKBACK_S = 30.0
"""Of the first question; later ones reach back to the last sample."""
SELECTOR = re.compile(r'[a-zA-Z_:][\w:]*(\{(?:[^"{}]|"(?:[^"\\]|\\.)*")*\})?')


@dataclass(frozen=True)
class Known:
    """labels: what tells one series' place from another's. match: a selector of the series that may
    be summed."""

    unit: str
    labels: tuple[str, ...]
    match: str = ""
    resolution: float | None = None


KNOWN: dict[str, Known] = {
    # NVIDIA's DCGM exporter.
    "DCGM_FI_DEV_POWER_USAGE": Known("W", ("instance", "Hostname", "gpu")),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": Known(
        "mJ", ("instance", "Hostname", "gpu"), resolution=1e-3
    ),
    # node_exporter: zones within a package are another metric and no part of the sum.
    "node_rapl_package_joules_total": Known("J", ("instance", "index", "path")),
    "node_rapl_dram_joules_total": Known("J", ("instance", "index", "path")),
    # Kepler has a series a zone; core lies inside package, psys around everything.
    "kepler_node_cpu_joules_total": Known(
        "J", ("instance", "zone", "path"), 'zone=~"package|dram"'
    ),
    # ipmi_exporter.
    "ipmi_dcmi_power_consumption_watts": Known("W", ("instance", "id"), resolution=1.0),
}


class PrometheusDevice:
    """Raises MeterError where a password or token is not in the environment."""

    reader = "prometheus"

    def __init__(self, section: PrometheusMeter, clock: Clock = SYSTEM_CLOCK) -> None:
        password = from_environment(section.password_env) if section.password_env else None
        token = from_environment(section.token_env) if section.token_env else None
        self._address = JsonAddress(
            section.url, section.timeout_s, section.user, password, token, section.verify_tls
        )
        what = section.metric or section.query or ""
        self.name = section.name or what[:60]
        self.notes: list[str] = []
        self._section, self._clock = section, clock
        self._known = KNOWN[section.metric] if section.metric else None
        self._unit = self._known.unit if self._known else section.unit or "W"
        self._query = self._selector() if self._known else section.query or ""
        self._channels: dict[str, Channel] = {}
        self._left_out: set[Channel] = set()
        self._seen_s: dict[Channel, float] = {}
        self._asked_s: float | None = None

    def ask(self) -> list[Sample | MeterFault]:
        now_s = self._clock.wall_s()
        back_s = LOOKBACK_S
        if self._asked_s is not None:
            # Samples become visible some time after they were scraped.
            back_s = max(LOOKBACK_S, now_s - self._asked_s + LOOKBACK_S)
        found = list(self._samples(self._answer(back_s)))
        self._asked_s = now_s
        return found

    def leave_out(self, channel: Channel) -> None:
        self._left_out.add(channel)

    def close(self) -> None:
        self._address.close()

    def _selector(self) -> str:
        assert self._known is not None
        labels = [f'{name}="{_escaped(value)}"' for name, value in self._section.match.items()]
        labels += [self._known.match] if self._known.match else []
        return f"{self._section.metric}{{{', '.join(labels)}}}"

    def _answer(self, back_s: float) -> list[Any]:
        """The series of a range of ``back_s`` up to now. Raises MeterError."""
        if SELECTOR.fullmatch(self._query.strip()):
            query = f"{self._query}[{math.ceil(back_s)}s]"
        else:
            step_ms = max(1, round(1e3 * self._section.period_s))
            query = f"({self._query})[{math.ceil(back_s)}s:{step_ms}ms]"
        answer = self._address.get(f"/api/v1/query?{urlencode({'query': query})}")
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, dict) or data.get("resultType") != "matrix":
            raise MeterError("the answer is no series of samples", "wrong_type")
        series: list[Any] = data.get("result", [])
        if not series:
            raise MeterError(f"it has no series for {self._query[:120]} now", "unknown_name")
        if len(series) > self._section.most_series:
            raise MeterError(
                f"{len(series)} series for {self._query[:120]}, allowed: most_series "
                f"({self._section.most_series})",
                "wrong_type",
            )
        return series

    def _samples(self, series: list[Any]) -> Iterator[Sample | MeterFault]:
        """Those that are new. A series' samples come in the order of their times."""
        offset_s = self._clock.wall_s() - self._clock.monotonic_s()
        places = [self._place(one["metric"]) for one in series]
        for place, one in zip(places, series, strict=True):
            if places.count(place) > 1:
                raise MeterError(f"{places.count(place)} series are called {place}", "wrong_type")
            channel = self._channels.setdefault(place, self._channel(place))
            if channel in self._left_out:
                continue
            for wall_s, text in one["values"]:
                if wall_s <= self._seen_s.get(channel, -math.inf):
                    continue
                self._seen_s[channel] = wall_s
                value = float(text) * self._section.scale * TO_SI[self._unit]
                yield Sample(channel, wall_s - offset_s, wall_s, value)

    def _place(self, labels: dict[str, str]) -> str:
        """What tells this series from the others, in words: its labels' values."""
        names = self._known.labels if self._known else sorted(set(labels) - {"__name__", "job"})
        values = [labels[name] for name in names if labels.get(name)]
        return " ".join([self.name, *values])[:200]

    def _channel(self, place: str) -> Channel:
        section = self._section
        known = self._known
        # How often it is scraped, its samples tell.
        return Channel(
            "prometheus",
            place,
            section.covers,
            quantity(self._unit),
            contains=tuple(section.contains),
            averaging_s=section.averaging_s,
            lag_s=section.lag_s,
            resolution=known.resolution if known else None,
        )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
