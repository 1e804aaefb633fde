"""Numbers as a reader wants them: as many digits as the figure deserves, and no more.

A figure shows three significant digits, and more where its interval is narrow enough to deserve
them: half the interval's width is then shown with two significant digits where it starts with 1
or 2 and with one above, the rule of the Particle Data Group. A wide interval takes no digit away:
a ratio of 2.71 stays 2.71, and an end for which the figure's decimals are too few or too many
has digits of its own. Whole numbers stay whole.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from babel.dates import format_datetime

MINUS, THIN_SPACE = "\N{MINUS SIGN}", "\N{NARROW NO-BREAK SPACE}"
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(value: float, language: str = "en") -> str:
    """One figure without an interval: ``2.71``, ``12,345``, ``1.2×10⁻⁵``."""
    if value == 0 or (float(value).is_integer() and abs(value) < 1e15):
        return _localised(f"{value:,.0f}", language)
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size >= 15:
        mantissa, exponent = f"{value:.1e}".split("e")
        power = str(int(exponent)).translate(SUPERSCRIPTS)
        return _localised(mantissa, language) + f"×10{power}"
    decimals = max(0, 2 - size)
    while decimals and round(value, decimals - 1) == value:
        decimals -= 1
    return _localised(f"{value:,.{decimals}f}", language)


def with_interval(
    value: float, lo: float | None, hi: float | None, language: str = "en"
) -> tuple[str, str]:
    """(value, ``[lo, hi]``) to a common number of decimals; an empty text without interval."""
    if lo is None and hi is None:
        return number(value, language), ""
    ends = [value if end is None else end for end in (lo, hi)]
    half_width = (ends[1] - ends[0]) / 2
    if half_width <= 0 or half_width < abs(value) * 1e-12:
        return number(value, language), f"[{number(value, language)}]"
    place = math.floor(math.log10(half_width))
    digits = 2 if half_width / 10.0**place < 3 else 1
    narrow = min(9, max(0, digits - 1 - place))
    decimals = max(narrow, min(narrow + 2, _own_decimals(value)))
    shown = _localised(f"{value:,.{decimals}f}", language)
    low, high = (_end(x, value, decimals, language) for x in ends)
    low = low if lo is not None else f"{MINUS}∞"
    high = high if hi is not None else "∞"
    return shown, f"[{low}{'; ' if language == 'ru' else ', '}{high}]"


def _own_decimals(value: float) -> int:
    """Decimals of three significant digits; none more than the value was given with."""
    if value == 0 or float(value).is_integer():
        return 0
    decimals = min(9, max(0, 2 - math.floor(math.log10(abs(value)))))
    while decimals and round(value, decimals - 1) == value:
        decimals -= 1
    return decimals


def _end(end: float, value: float, decimals: int, language: str) -> str:
    """To the decimals of the figure ``value``, unless those say nothing about this end."""
    vanishes = end != 0 and round(end, decimals) == 0 and value > 1000 * abs(end)
    if vanishes or abs(end) > 100 * max(1.0, abs(value)):
        return number(end, language)
    return _localised(f"{end:,.{decimals}f}", language)


def moment(written: str, language: str = "en") -> str:
    """A recorded time as a reader writes it: ``29 November 2026, 10:21 UTC``; as it stands where it
    is none."""
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        return written
    shown = format_datetime(at, "d MMMM y, HH:mm", locale=language)
    return f"{shown} UTC" if at.utcoffset() == timedelta(0) else shown


def raw(*values: object) -> str:
    """Figures with all their digits for a spreadsheet, ``|`` between them, nothing for a missing
    one: the form of ``data-csv`` in the report's tables."""
    missing = ("None", "nan", "NaN", "<NA>")
    return "|".join("" if str(value) in missing else str(value) for value in values)


SIZES = {"en": ("", "k", "M", "B", "T"), "ru": ("", "тыс.", "млн", "млрд", "трлн")}


def rounded(value: float, language: str = "en") -> str:
    """A large figure of two digits with its size in a word: ``0.6M``, ``300M``, ``1.1B``; what is
    below a thousand as it is. Millions begin at a tenth of one."""
    size = sum(abs(value) >= least for least in (1e3, 1e5, 1e9, 1e12))
    scaled = value / 1000**size
    if scaled == 0:
        return "0"
    digits = 1 - math.floor(math.log10(abs(scaled)))
    shown = number(round(scaled, digits), language)
    gap = THIN_SPACE if language == "ru" and size else ""
    return f"{shown}{gap}{SIZES[language][size]}"


def duration(seconds: float, language: str = "en") -> str:
    """A time span as ``48 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    h, m, s = ("ч", "мин", "с") if language == "ru" else ("h", "min", "s")
    whole = round(seconds)
    if whole < 60:
        return f"{number(seconds if seconds < 10 else whole, language)} {s}"
    if whole < 3600:
        return f"{whole // 60} {m} {whole % 60} {s}"
    return f"{whole // 3600} {h} {whole % 3600 // 60} {m}"


def _localised(text: str, language: str) -> str:
    text = text.replace("-", MINUS)
    if language == "ru":
        return text.replace(",", THIN_SPACE).replace(".", ",")
    return text
