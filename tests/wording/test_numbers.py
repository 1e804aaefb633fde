"""Digits follow the value and a narrow interval; each language writes numbers its own way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.wording.numbers import duration, number, with_interval


@pytest.mark.parametrize(
    ("value", "english", "russian"),
    [
        (0, "0", "0"),
        (2.71, "2.71", "2,71"),
        (2.7134, "2.71", "2,71"),
        (1.5, "1.5", "1,5"),
        (-0.0123456, "−0.0123", "−0,0123"),
        (12_345.6, "12,346", "12\u202f346"),
        (2_000_000, "2,000,000", "2\u202f000\u202f000"),
        (0.0000123, "1.2×10⁻⁵", "1,2×10⁻⁵"),
    ],
)
def test_numbers_have_three_digits_at_most(value: float, english: str, russian: str) -> None:
    assert number(value) == english
    assert number(value, "ru") == russian


@pytest.mark.parametrize(
    ("value", "lo", "hi", "expected"),
    [
        (2.7134, 2.65, 2.78, ("2.71", "[2.65, 2.78]")),
        (2.7134, 2.59, 2.83, ("2.71", "[2.59, 2.83]")),
        (0.0712, 0.05, 0.09, ("0.0712", "[0.0500, 0.0900]")),
        (2.7134, 1.1, 7.9, ("2.71", "[1.10, 7.90]")),
        (3.0, 0.000128, 86_257.3, ("3", "[0.000128, 86,257]")),
        (2.96, 0.000128, 86_257.3, ("2.96", "[0.000128, 86,257]")),
        (2.713456, 2.71341, 2.71351, ("2.71346", "[2.71341, 2.71351]")),
        (1234.56, 1200.0, 1270.0, ("1,235", "[1,200, 1,270]")),
        (5.0, 5.0, 5.0, ("5", "[5]")),
        (0.5, None, 0.7, ("0.50", "[−∞, 0.70]")),
        (0.5, None, None, ("0.5", "")),
    ],
)
def test_a_wide_interval_takes_no_digit_and_a_narrow_one_adds_some(value, lo, hi, expected) -> None:
    assert with_interval(value, lo, hi) == expected


def test_russian_intervals_do_not_mix_their_two_commas() -> None:
    assert with_interval(2.71, 2.65, 2.78, "ru") == ("2,71", "[2,65; 2,78]")


@given(st.floats(-1e5, 1e5), st.floats(1e-5, 1e6))
def test_a_shown_interval_is_the_interval(value: float, half: float) -> None:
    shown, interval = with_interval(value, value - half, value + half)
    ends = interval.strip("[]").split(", ")
    read = [float(text.replace(",", "").replace("−", "-")) for text in (shown, *ends)]
    for got, meant in zip(read, (value, value - half, value + half), strict=False):
        assert abs(got - meant) <= max(0.2 * half, 0.005 * abs(meant) * (half > 50))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (41.6, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
