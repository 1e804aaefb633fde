"""What stands in a cell of an export: a number with or without a unit, a time in some clock.

Nothing is guessed that could be wrong. A comma that may be of thousands or decimals, a date that
may be of the third of February or the second of March, and a local time without its zone are
refused with what to declare.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo

from workbench.errors import ConfigError

DateOrder = Literal["dmy", "mdy"]
Decimal = Literal[".", ","]
POWERS = {"mW": 1e-3, "W": 1.0, "kW": 1e3, "MW": 1e6}
ENERGIES = {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "Wh": 3.6e3, "kWh": 3.6e6, "MWh": 3.6e9}
"""The case tells m from M."""
_WORDS = {
    "watt": "W", "watts": "W", "kilowatt": "kW", "kilowatts": "kW", "milliwatts": "mW",
    "joules": "J", "joule": "J", "millijoules": "mJ", "kilojoules": "kJ",
}  # fmt: skip
NO_READING = {
    "", "-", "n/a", "[n/a]", "nan", "null", "none", "undefined", "[not supported]",
    "[unknown error]", "not supported", "err!", "no data",
}  # fmt: skip
_NUMBER = re.compile(
    r"([+-]?\d[\d.,\u00a0\u202f' ]*(?:[eE][+-]?\d+)?|[+-]?[.,]\d+)\s*([A-Za-z]*)\.?"
)
_UNIT = "|".join(sorted([*POWERS, *ENERGIES], key=len, reverse=True))
_HEADER_UNITS = (
    re.compile(rf"\s*[\[(]\s*({_UNIT}|[Ww]atts?|[Kk]ilowatts?|[Jj]oules?)\s*[\])]\s*$"),
    re.compile(rf"[ ._/,]+({_UNIT}|[Ww]atts?|[Kk]ilowatts?|[Jj]oules?)\s*$"),
)
FALL_BACK_S = 300.0
"""A local clock that stands so far behind what it showed has gone back."""


def known_unit(name: str) -> str | None:
    """The unit that a word means, None where it is none."""
    if name in POWERS or name in ENERGIES:
        return name
    return _WORDS.get(name.lower())


def to_si(unit: str) -> tuple[Literal["power", "energy"], float]:
    """(quantity, factor to W or J)."""
    if unit in POWERS:
        return "power", POWERS[unit]
    return "energy", ENERGIES[unit]


def header_unit(name: str) -> tuple[str, str | None]:
    """(the column's name without its unit, the unit it states)."""
    for pattern in _HEADER_UNITS:
        if found := pattern.search(name):
            return name[: found.start()].strip() or name.strip(), known_unit(found[1])
    return name.strip(), None


class CellNumbers:
    """Reads numbers with a decimal point or comma; which of them, the texts themselves say, or it
    is declared."""

    def __init__(self, decimal: Decimal | None = None) -> None:
        self.decimal: Decimal | None = decimal

    def learn(self, texts: list[str]) -> None:
        """Raises ConfigError where commas may be of thousands as well as decimals."""
        if self.decimal is not None:
            return
        numbers = [found[1] for text in texts if (found := _NUMBER.fullmatch(text.strip()))]
        with_comma = [number for number in numbers if "," in number]
        if not with_comma:
            self.decimal = "."
        elif any(_is_decimal_comma(number) for number in with_comma):
            self.decimal = ","
        elif any("." in number[number.rindex(",") :] for number in with_comma):
            self.decimal = "."
        else:
            raise ConfigError(
                f"numbers such as {with_comma[0]!r}: the comma may be of decimals or of thousands",
                allowed="a declared mark where the file does not tell",
                next_step="add --decimal , or --decimal .",
            )

    def value(self, text: str) -> tuple[float, str | None]:
        """(number, unit that stands behind it). Raises ValueError for what is no reading."""
        bare = text.strip()
        if bare.lower() in NO_READING:
            raise ValueError(f"no reading: {bare!r}")
        found = _NUMBER.fullmatch(bare)
        unit = known_unit(found[2]) if found and found[2] else None
        if not found or (found[2] and unit is None):
            raise ValueError(f"no number: {bare[:40]!r}")
        digits = re.sub(r"[\s'\u00a0\u202f]", "", found[1])
        if self.decimal == ",":
            digits = digits.replace(".", "").replace(",", ".")
        else:
            digits = digits.replace(",", "")
        try:
            return float(digits), unit
        except ValueError:
            raise ValueError(f"no number: {bare[:40]!r}") from None


def _is_decimal_comma(number: str) -> bool:
    """``1,42`` and ``1.234,5``, not ``1,420`` and ``1,234.5``."""
    before, _, after = number.rpartition(",")
    return "." not in after and (len(after) != 3 or "." in before or before.lstrip("+-") == "0")


_ISO_OFFSET = re.compile(r"([+-]\d{2}:?\d{2}|Z)$")
_DOTTED = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(.*)")
_SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})(.*)")
_YEAR_FIRST = re.compile(r"(\d{4})[/.](\d{1,2})[/.](\d{1,2})(.*)")
_CTIME = re.compile(
    r"(?:[A-Z][a-z]{2},? )?([A-Z][a-z]{2}) +(\d{1,2}) +(\d{2}:\d{2}:\d{2}(?:\.\d+)?)"
    r"(?: +([A-Z]{2,5}))?(?: +([+-]\d{4}))? +(\d{4})"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_UNIX = ((9.46e8, 4.1e9, 1.0), (9.46e11, 4.1e12, 1e-3), (9.46e14, 4.1e15, 1e-6),
         (9.46e17, 4.1e18, 1e-9))  # fmt: skip
"""Unix times of 2000 to 2099, in s, ms, us and ns."""


class CellTimes:
    """Reads the times of one export.

    zone: of times without an offset. date_order: of dates such as 03/02/2026.
    """

    def __init__(self, zone: str | None = None, date_order: DateOrder | None = None) -> None:
        self._zone = ZoneInfo(zone) if zone else None
        self._order = date_order
        self._latest_s: dict[str, float] = {}

    def learn(self, texts: list[str]) -> None:
        """Decide what the texts themselves tell. Raises ConfigError where a date can be read in
        two ways."""
        slashed = [found for text in texts if (found := _SLASHED.match(text.strip()))]
        if self._order is not None or not slashed:
            return
        if any(int(found[1]) > 12 for found in slashed):
            self._order = "dmy"
        elif any(int(found[2]) > 12 for found in slashed):
            self._order = "mdy"
        else:
            raise ConfigError(
                f"dates such as {slashed[0][0][:10]}: the day or the month may come first",
                allowed="a declared order where the file does not tell",
                next_step="add --date-order dmy or --date-order mdy",
            )

    def unix_s(self, text: str, source: str = "") -> float:
        """Raises ValueError for what is no time, ConfigError for one without a zone.

        source: whose rows follow one another; in the hour that a local clock shows twice, a row
        belongs to the first pass until its source's clock has gone back.
        """
        bare = text.strip()
        try:
            number = float(bare)
        except ValueError:
            return self._dated(bare, source)
        for low, high, factor in _UNIX:
            if low <= number < high:
                return number * factor
        raise ValueError(f"no time: {bare[:40]!r}")

    def _dated(self, text: str, source: str) -> float:
        try:
            moment = datetime.fromisoformat(self._as_iso(text))
        except (ValueError, OverflowError):
            raise ValueError(f"no time: {text[:40]!r}") from None
        if moment.tzinfo is not None:
            return moment.timestamp()
        if self._zone is None:
            raise ConfigError(
                f"times such as {text[:40]!r} have no offset from UTC",
                allowed="times with an offset, Unix times, or a declared zone",
                next_step="add --zone Europe/Berlin (or the zone of the machine that wrote the "
                "file; --zone UTC if it is that)",
            )
        first = moment.replace(tzinfo=self._zone)
        if first.astimezone(UTC).astimezone(self._zone).replace(tzinfo=None) != moment:
            raise ValueError(f"no time of {self._zone.key}: {text[:40]!r}")
        found_s = first.timestamp()
        latest_s = self._latest_s.get(source, found_s)
        second_s = moment.replace(tzinfo=self._zone, fold=1).timestamp()
        if second_s > found_s and latest_s - found_s > FALL_BACK_S:
            found_s = second_s
        self._latest_s[source] = max(latest_s, found_s)
        return found_s

    def _as_iso(self, text: str) -> str:
        if found := _DOTTED.fullmatch(text):
            text = f"{found[3]}-{int(found[2]):02d}-{int(found[1]):02d}{found[4]}"
        elif found := _YEAR_FIRST.fullmatch(text):
            text = f"{found[1]}-{int(found[2]):02d}-{int(found[3]):02d}{found[4]}"
        elif found := _SLASHED.fullmatch(text):
            first, second = int(found[1]), int(found[2])
            on = (second, first) if self._order == "dmy" else (first, second)
            text = f"{found[3]}-{on[0]:02d}-{on[1]:02d}{found[4]}"
        elif found := _CTIME.fullmatch(text):
            month, day, clock, zone, offset, year = found.groups()
            if zone not in (None, "UTC", "GMT") and offset is None and self._zone is None:
                raise ConfigError(
                    f"times such as {text!r}: {zone} is the name of several zones",
                    allowed="times with an offset, UTC, or a declared zone",
                    next_step="add --zone Europe/Berlin, or the zone that it means",
                )
            offset = offset or ("+0000" if zone in ("UTC", "GMT") else "")
            text = f"{year}-{_MONTHS.index(month) + 1:02d}-{int(day):02d} {clock}{offset}"
        text = re.sub(r"(:\d{2}),(\d)", r"\1.\2", text)
        text = re.sub(r"(\.\d{6})\d+", r"\1", text)
        if found := re.search(r"[ T]*(\d{1,2}):(\d{2})(:\d{2}(?:\.\d+)?)? ?([AaPp])[Mm]$", text):
            hour = int(found[1]) % 12 + (12 if found[4] in "pP" else 0)
            text = f"{text[: found.start()]} {hour:02d}:{found[2]}{found[3] or ''}"
        text = re.sub(r" ?(UTC|GMT)$", "Z", text)
        return re.sub(rf"\s+{_ISO_OFFSET.pattern}", r"\1", text)
