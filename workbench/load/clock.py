"""Times of a trace, whatever it writes for them, as seconds.

Numbers have a unit that is declared, or told by their size where they count from 1970, or else the
format's own. Counted from 0 nothing gives the unit away but what is implausible: fractions of a
millisecond, and rates.

Dates with an offset are what they say. Without one they are taken in ``time_zone``, and as UTC
where none is declared. In the hour that a local clock shows twice at the end of summer time, a
line belongs to the first pass until the clock has gone back. Times come out as seconds after
``base_s``, a whole second, because seconds since 1970 leave a float no more than a quarter of a
microsecond.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from workbench.errors import ConfigError
from workbench.load.formats import Layout
from workbench.paths import shown
from workbench.pilot.sections.profile_load import ProfileLoad

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
NO_UNIT = "none"
"""Of numbers in a format whose times are dates: a year, or another program's seconds."""
UNIX = {unit: (9.46e8 / size, 4.1e9 / size) for unit, size in UNITS.items()}
"""Times between 2000 and 2099, in each unit. Counted from 0 they would last decades."""
HOUR_NS = 3_600_000_000_000
NEVER_NS = -(2**62)
LATEST_S = 7.3e9
"""The year 2201, in seconds since 1970."""
PLAUSIBLE_PER_S = (0.01, 100.0)
"""Mean rates that a service may have, where that must tell milliseconds from seconds."""
ALLOWED = (
    "Unix times, seconds or another time_unit, or a date and time such as "
    "2023-11-16 18:17:03.9799600, with or without an offset"
)
NUMBER = r"^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?$"
DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?)?"
OFFSET = r"([+-][0-9]{2}(:?[0-9]{2})?|[zZ])$"
TIME_OF_DAY = r"[ T][0-9:.]+"
_REWRITES = (
    (r"(:[0-9]{2}),([0-9])", r"\1.\2"),
    (r"(\.[0-9]{9})[0-9]+", r"\1"),
    (r"^([0-9]{2})\.([0-9]{2})\.([0-9]{4})", r"\3-\2-\1"),
    (r"^([0-9]{4})/([0-9]{2})/([0-9]{2})", r"\1-\2-\3"),
    (r"^\[?([0-9]{2})/([A-Z][a-z]{2})/([0-9]{4}):", r"\3-\2-\1 "),
    (r"\]$", ""),
    (r" ?(UTC|GMT)$", "Z"),
    (r" ([+-][0-9]{2}:?[0-9]{2})$", r"\1"),
)
"""Decimal commas, too many digits, day first with dots, slashes, web servers' dates, offsets."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class TraceClock:
    """Reads the times of one trace; the first rows decide what is not declared.

    absolute: the times say which day it was. naive: some dates had no offset and no zone was
    declared. base_s: Unix seconds (or the trace's own, where not absolute) that times count from.
    """

    def __init__(self, path: Path, section: ProfileLoad, layout: Layout) -> None:
        self._path, self._section, self._layout = path, section, layout
        self.unit: str | None = None
        self.absolute = False
        self.naive = False
        self.base_s: int | None = None
        self.notes: list[str] = []
        self.fractions_of_ms = False
        self._aware: bool | None = None
        self._last_ns = NEVER_NS
        self._other_hour = False
        self._looked = False

    def seconds(self, values: pa.Array) -> np.ndarray:
        """Seconds after ``base_s``, NaN where a value is no time, ``[rows]`` float64."""
        found = self._unix(values)
        if self.base_s is None:
            whole = found[np.isfinite(found)]
            self.base_s = int(np.floor(np.median(whole[:99]))) if len(whole) else 0
            if not self.absolute:
                self.base_s = 0
            self._last_ns = NEVER_NS
            found = self._unix(values)
        with np.errstate(invalid="ignore"):
            if self.absolute:
                outside = (found + self.base_s < 0) | (found + self.base_s > LATEST_S)
                found = np.where(outside, np.nan, found)
        return found

    def _unix(self, values: pa.Array) -> np.ndarray:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_timestamp(values.type):
            self.absolute = True
            return self._instants(values, values.type.tz is not None)
        if pa.types.is_null(values.type) or pa.types.is_nested(values.type):
            return np.full(len(values), np.nan)
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            return self._scaled(numbers(values))
        if self._section.time_format:
            return self._by_format(values)
        if self.unit is not None and self._aware is None:
            return self._texts(values, numbers_first=True)
        return self._texts(values, numbers_first=False)

    def _texts(self, values: pa.Array, numbers_first: bool) -> np.ndarray:
        read = (self._number_texts, self._dates)
        first, second = read if numbers_first else read[::-1]
        found = first(values)
        rest = ~np.isfinite(found)
        if rest.any():
            found[rest] = second(values.filter(pa.array(rest)))
        return found

    # Numbers

    def _number_texts(self, values: pa.Array) -> np.ndarray:
        return self._scaled(numbers(values, self._section.decimal))

    def _scaled(self, found: np.ndarray) -> np.ndarray:
        found = np.where(np.isfinite(found), found, np.nan)
        whole = found[np.isfinite(found)]
        if not len(whole):
            return found
        if self.unit is None:
            self.unit = self._unit(whole)
        if self.unit == NO_UNIT:
            self.unit = None
            return np.full(len(found), np.nan)
        if not self._looked:
            self._looked = True
            low, high = UNIX[self.unit]
            self.absolute = bool(low <= np.median(whole[:99]) < high)
        if self.unit == "ms" and not self.fractions_of_ms:
            self.fractions_of_ms = bool((whole % 1).any())
        base = self.base_s or 0
        # The whole part first: 1e9 s and a fraction in one product would lose digits.
        return (found - base / UNITS[self.unit]) * UNITS[self.unit]

    def _unit(self, whole: np.ndarray) -> str:
        if self._section.time_unit != "auto":
            return self._section.time_unit
        typical, usual = float(np.median(whole[:99])), self._layout.unit
        for unit, (low, high) in UNIX.items():
            if low <= typical < high:
                if unit != usual:
                    self.notes.append(f"times are read as Unix times in {unit}, by their size")
                return unit
        if usual != "ms" or not (whole % 1).any():
            return usual or NO_UNIT
        span = np.quantile(whole, 0.99) - np.quantile(whole, 0.01)
        as_s = 0.98 * len(whole) / max(span, 1e-9)
        lowest, highest = PLAUSIBLE_PER_S
        plausible = {
            unit: lowest <= rate <= highest for unit, rate in (("s", as_s), ("ms", 1e3 * as_s))
        }
        if plausible["s"] != plausible["ms"]:
            unit = "s" if plausible["s"] else "ms"
            self.notes.append(
                f"the times have fractions, which this format's milliseconds do not have; read as "
                f"{unit}, since that gives {as_s if unit == 's' else 1e3 * as_s:.3g} requests/s "
                "and not a thousandfold; profile_load.time_unit declares it"
            )
            return unit
        raise ConfigError(
            f"{shown(self._path)}: the times have fractions, which this format's milliseconds do "
            f"not have: {as_s:.3g} requests/s in seconds, {1e3 * as_s:.3g} in milliseconds",
            allowed="a declared unit where the times do not say it",
            next_step="set profile_load.time_unit to s or ms",
        )

    # Dates

    def _dates(self, values: pa.Array) -> np.ndarray:
        found = np.full(len(values), np.nan)
        if not len(values):
            return found
        try:
            whole = self._cast(values)
            self.absolute = True
            return whole
        except pa.ArrowInvalid:
            pass
        texts = pc.utf8_trim_whitespace(values)
        for pattern, to in _REWRITES:
            texts = pc.replace_substring_regex(texts, pattern, to)
        if pc.any(pc.match_substring_regex(texts, r"^[0-9]{4}-[A-Z]")).as_py():
            for number, month in enumerate(_MONTHS, start=1):
                texts = pc.replace_substring(texts, f"-{month}-", f"-{number:02d}-")
        dated = pc.fill_null(pc.match_substring_regex(texts, f"{DATE}({OFFSET}|$)"), False)
        if not pc.any(dated).as_py():
            return found
        self.absolute = True
        aware = pc.match_substring_regex(texts, TIME_OF_DAY + OFFSET)
        for mask, has_offset in (
            (pc.and_(dated, aware), True),
            (pc.and_(dated, pc.invert(aware)), False),
        ):
            at = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
            if len(at):
                found[at] = self._parsed(texts.take(pa.array(at)), has_offset)
        return found

    def _cast(self, values: pa.Array) -> np.ndarray:
        """All at once, when they are all of one kind; pa.ArrowInvalid when they are not."""
        if self._aware is None:
            first = values[0].as_py() or ""
            self._aware = bool(re.search(TIME_OF_DAY + OFFSET, first))
        kind = pa.timestamp("ns", "UTC" if self._aware else None)
        # Arrow also takes a bare year for a date; in a log it is a number in some other unit.
        if not pc.all(pc.match_substring(pc.utf8_slice_codeunits(values, 4, 5), "-")).as_py():
            raise pa.ArrowInvalid("no dates")
        return self._instants(values.cast(kind), self._aware)

    def _parsed(self, texts: pa.Array, has_offset: bool) -> np.ndarray:
        try:
            return self._instants(
                texts.cast(pa.timestamp("ns", "UTC" if has_offset else None)), has_offset
            )
        except pa.ArrowInvalid:
            times = pd.to_datetime(
                pd.Series(texts.to_pylist(), dtype=object),
                format="ISO8601",
                utc=True,
                errors="coerce",
            )
            return self._moments(times.dt.tz_localize(None), has_offset)

    def _by_format(self, values: pa.Array) -> np.ndarray:
        self.absolute = True
        texts = pd.Series(values.to_pylist(), dtype=object)
        has_offset = "%z" in self._section.time_format
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            times = pd.to_datetime(
                texts, format=self._section.time_format, errors="coerce", utc=has_offset
            )
        return self._moments(times.dt.tz_localize(None) if has_offset else times, has_offset)

    def _moments(self, plain: pd.Series, has_offset: bool) -> np.ndarray:
        """As :meth:`_instants`, of what pandas read; years out of the range of ns are no times."""
        inside = (plain >= pd.Timestamp(1700, 1, 1)) & (plain <= pd.Timestamp(2200, 1, 1))
        whole = plain.where(inside).astype("datetime64[ns]")
        return self._instants(pa.array(whole, pa.timestamp("ns"), from_pandas=True), has_offset)

    def _instants(self, times: pa.Array, has_offset: bool) -> np.ndarray:
        """Seconds after the base of timestamps; null gives NaN."""
        times = times.cast(pa.timestamp("ns", times.type.tz))
        valid = times.is_valid().to_numpy(zero_copy_only=False)
        ns = times.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        if not has_offset and self._section.time_zone:
            ns, known = self._utc(ns)
            valid = valid & known
        elif not has_offset:
            self.naive = True
        seconds = (ns - (self.base_s or 0) * 1_000_000_000) / 1e9
        return np.where(valid, seconds, np.nan)

    def _utc(self, local_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """UTC of a local clock's times, and which of them that clock showed at all."""
        zone = self._section.time_zone
        local = pd.DatetimeIndex(local_ns.astype("datetime64[ns]"))
        first, second = (
            local.tz_localize(zone, ambiguous=np.full(len(local), summer), nonexistent="NaT")
            for summer in (True, False)
        )
        known = ~np.asarray(first.isna())
        utc, later = first.asi8.copy(), second.asi8
        at = np.flatnonzero(known)
        if not len(at):
            return utc, known
        within_ns = int(self._section.reorder_s * 1e9)
        latest = np.maximum.accumulate(np.concatenate([[self._last_ns], utc[at]]))[1:]
        unclear = (later[at] != utc[at]) | (latest - utc[at] > within_ns)
        if unclear.any() and self._leaves_summer_time(local[at[int(np.argmax(unclear))]]):
            self._put_in_passes(utc, later, at[int(np.argmax(unclear)) :], within_ns)
        self._last_ns = int(utc[at[-1]])
        return utc, known

    def _leaves_summer_time(self, local: pd.Timestamp) -> bool:
        """Whether the zone's clock goes back within a day of a local time."""
        day = pd.Timedelta(days=1)
        before, after = (
            (local + step).tz_localize(self._section.time_zone, ambiguous=True,
                                       nonexistent="shift_forward").utcoffset()
            for step in (-day, day)
        )  # fmt: skip
        return before > after

    def _put_in_passes(
        self, utc: np.ndarray, later: np.ndarray, rows: np.ndarray, within_ns: int
    ) -> None:
        """Of the hour that the clock shows twice, the second pass once the clock has gone back.

        A clock that goes back at another time of that day than the zone says is believed too: the
        order of its lines shows when, and a note says so.
        """
        before = rows[0] - 1
        last = int(utc[before]) if before >= 0 else self._last_ns
        passed = False
        for number, row in enumerate(rows):
            if utc[row] >= last - within_ns:
                last = int(utc[row])
                continue
            near = utc[rows[number : number + 8]]
            if not passed and (near < last - within_ns).mean() <= 0.5:
                continue  # one line that was written late
            passed = True
            if later[row] == utc[row]:
                self._say_other_hour(int(utc[row]))
                utc[row] += HOUR_NS
            else:
                utc[row] = later[row]
            last = int(utc[row])

    def _say_other_hour(self, utc_ns: int) -> None:
        if self._other_hour:
            return
        self._other_hour = True
        shown_at = pd.Timestamp(utc_ns, tz="UTC").tz_convert(self._section.time_zone)
        self.notes.append(
            f"the clock goes back to {shown_at:%H:%M} on {shown_at:%Y-%m-%d}, at another hour than "
            f"{self._section.time_zone} does; it is taken for the end of summer time all the same: "
            "the rates hold, the hours of the day only if the zone is right"
        )


def numbers(values: pa.Array, decimal: str = ".") -> np.ndarray:
    """Numbers or texts of numbers as float64, NaN for what is none, ``[rows]``."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_null(values.type) or pa.types.is_boolean(values.type):
        return np.full(len(values), np.nan)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        try:
            return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return np.full(len(values), np.nan)
    if decimal != ".":
        values = pc.replace_substring(values, decimal, ".")
    try:
        return values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        texts = pc.utf8_trim_whitespace(values)
        fits = pc.fill_null(pc.match_substring_regex(texts, NUMBER), False)
        whole = pc.if_else(fits, texts, pa.scalar(None, texts.type))
        return whole.cast(pa.float64()).to_numpy(zero_copy_only=False)
