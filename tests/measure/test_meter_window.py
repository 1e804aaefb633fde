import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.measure.meters.sample import Channel
from workbench.measure.meters.window import window_energy

POWER = Channel("csv", "a", "node", "power")
COUNTER = Channel(
    "rapl", "package-0", "cpu", "energy", period_s=0.001, lag_s=0.0, wraps_at_j=1000.0
)


def energy(channel, times, values, start, end, max_gap_s=3.0):
    return window_energy(channel, np.array(times), np.array(values, float), start, end, max_gap_s)


def test_power_is_integrated_by_trapezoid_with_interpolated_edges():
    # 10 W + 4 W/s * t, from 0.5 to 3.25: 10*2.75 + 2*(3.25**2 - 0.5**2)
    times = np.arange(5.0)
    reading = energy(POWER, times, 10 + 4 * times, 0.5, 3.25)
    assert reading.energy_j == pytest.approx(10 * 2.75 + 2 * (3.25**2 - 0.5**2))
    assert reading.samples == 3


def test_a_counter_is_differenced_with_interpolated_edges():
    reading = energy(COUNTER, [0.0, 1.0, 2.0], [100, 110, 150], 0.5, 1.5)
    assert reading.energy_j == pytest.approx(5 + 20)


def test_a_counter_that_wraps_goes_on():
    reading = energy(COUNTER, [0.0, 1.0, 2.0, 3.0], [900, 980, 60, 140], 0.0, 3.0)
    assert reading.energy_j == pytest.approx(240)


@given(
    steps=st.lists(st.floats(0.05, 2.5), min_size=4, max_size=30),
    powers=st.lists(st.floats(1.0, 900.0), min_size=31, max_size=31),
    cuts=st.tuples(*[st.floats(0.0, 1.0)] * 3),
)
def test_the_energies_of_two_windows_add_up_to_that_of_both(steps, powers, cuts):
    times = np.concatenate([[0.0], np.cumsum(steps)])
    a, b, c = (cut * times[-1] for cut in sorted(cuts))
    values = np.array(powers[: len(times)])
    parts = [energy(POWER, times, values, *w) for w in ((a, b), (b, c), (a, c))]
    if any(part.energy_j is None for part in parts):
        assert {p.reason for p in parts if p.energy_j is None} == {"too_short"}
        return
    assert parts[0].energy_j + parts[1].energy_j == pytest.approx(parts[2].energy_j)


@pytest.mark.parametrize(
    ("channel", "times", "values", "window", "reason", "words"),
    [
        (POWER, [], [], (0, 1), "device_missing", "no sample"),
        (POWER, [1, 2, 3, 4], [5, 5, 5, 5], (0.5, 3), "not_bracketed", "0.50 s after the start"),
        (POWER, [1, 2, 3, 4], [5, 5, 5, 5], (1, 4.25), "not_bracketed", "0.25 s before the end"),
        (POWER, [0, 1, 4.5, 5], [5, 5, 5, 5], (0, 5), "gap", "no sample for 3.50 s"),
        (POWER, [0, 1, 2], [5, 5, 5], (0.9, 1.1), "too_short", "1 sample in 0.200 s"),
        (COUNTER, [0, 1, 2], [5, 6, 7], (0.5, 0.505), "too_short", "renewed every 0.001 s"),
        (COUNTER, [0, 1, 2], [7, 7, 7], (0.0, 2.0), "counter_stuck", "did not move"),
        (COUNTER, [0, 0.1, 0.2], [300, 10, 20], (0, 0.2), "counter_reset", "back by 290 J"),
        (
            Channel("nvml", "gpu0", "gpu", "energy", period_s=0.1, lag_s=0.0),
            [0, 1, 2],
            [999, 0, 1],
            (0, 2),
            "counter_reset",
            "gpu0",
        ),
    ],
)
def test_a_window_that_cannot_be_trusted_gives_no_number_and_a_reason(
    channel, times, values, window, reason, words
):
    reading = energy(channel, [float(t) for t in times], values, *window)
    assert reading.energy_j is None
    assert reading.reason == reason
    assert words in reading.text


def test_a_gap_outside_of_the_window_does_not_matter():
    times = [0.0, 10.0, 11.0, 12.0, 13.0, 30.0]
    assert energy(POWER, times, [7.0] * 6, 10.0, 13.0).energy_j == pytest.approx(21.0)
