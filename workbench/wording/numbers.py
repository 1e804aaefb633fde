"""Numbers as a reader wants them: as many digits as the figure deserves, and no more.

The interval decides the digits of its figure: its half width is shown with two significant
digits where it starts with 1 or 2 and with one above, the rule of the Particle Data Group.
A figure without an interval shows three significant digits, fewer where it was given with
fewer, and whole numbers stay whole.
"""

from __future__ import annotations

import math

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
    decimals = min(9, max(0, digits - 1 - place))
    shown = [_localised(f"{x:,.{decimals}f}", language) for x in (value, *ends)]
    low = shown[1] if lo is not None else f"{MINUS}∞"
    high = shown[2] if hi is not None else "∞"
    return shown[0], f"[{low}{'; ' if language == 'ru' else ', '}{high}]"


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
