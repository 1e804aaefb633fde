"""Descent and budget, on losses that are made up: what matters is the order and the limit."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workbench.hybrid.plan import Option, coarsest_within, descent

SIZES = {"high_precision": 16, "int8": 8, "ternary": 2}


def options_of(losses: dict[str, tuple[float, float, float]], weight: dict[str, int] | None = None):
    weight = weight or dict.fromkeys(losses, 1)
    return [
        Option(unit, precision, loss, SIZES[precision] * weight[unit])
        for unit, its in losses.items()
        for precision, loss in zip(SIZES, its, strict=True)
    ]


def test_the_cheapest_byte_goes_first() -> None:
    # INT8 of either is nearly free; b gives its last bytes for less than a.
    plans = descent(options_of({"a": (0, 0.001, 0.5), "b": (0, 0.002, 0.1)}), True)
    as_text = ["".join(p[0] for p in plan.values()) for plan in plans]
    assert as_text == ["hh", "ih", "ii", "it", "tt"]


def test_a_step_that_is_dominated_is_left_out() -> None:
    # INT8 loses more than ternary does: nobody wants it.
    plans = descent(options_of({"a": (0, 0.3, 0.1)}), True)
    assert [plan["a"] for plan in plans] == ["high_precision", "ternary"]


def test_a_big_layer_goes_before_a_small_one_of_the_same_loss() -> None:
    options = options_of({"small": (0, 0.1, 0.2), "big": (0, 0.1, 0.2)}, {"small": 1, "big": 9})
    assert descent(options, True)[1] == {"small": "high_precision", "big": "int8"}


def test_a_precise_base_does_not_start_from_noise() -> None:
    options = options_of({"a": (0, -0.001, 0.2)})
    assert descent(options, True)[0] == {"a": "high_precision"}


def test_a_ternary_base_raises_only_what_recovers_something() -> None:
    options = options_of({"helps": (-0.2, -0.1, 0.0), "harms": (0.05, 0.04, 0.0)})
    plans = descent(options, False)
    assert plans == [
        {"helps": "high_precision", "harms": "ternary"},
        {"helps": "int8", "harms": "ternary"},
        {"helps": "ternary", "harms": "ternary"},
    ]


losses = st.tuples(*[st.floats(-0.1, 1, allow_nan=False)] * 3)


@given(st.dictionaries(st.sampled_from("abcdef"), losses, min_size=1), st.booleans())
def test_every_step_saves_bytes_in_one_unit_down_to_the_smallest(made_up, precise) -> None:
    plans = descent(options_of(made_up), precise)
    for before, after in pairwise(plans):
        changed = [unit for unit in before if before[unit] != after[unit]]
        assert len(changed) == 1
        assert SIZES[after[changed[0]]] < SIZES[before[changed[0]]]
    assert set(plans[-1].values()) == {"ternary"}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40).map(sorted), st.floats(0, 1))
def test_bisection_finds_what_a_full_search_finds(growing, limit) -> None:
    plans = [{"a": str(step)} for step in range(len(growing))]
    calls = []

    def loss_of(plan) -> float:
        calls.append(int(plan["a"]))
        return growing[calls[-1]]

    found = coarsest_within(plans, loss_of, limit)
    allowed = [step for step, loss in enumerate(growing) if loss <= limit]
    assert found.within == bool(allowed)
    if allowed:
        assert found.step == max(allowed)
    else:
        assert found.quality_loss == growing[0]
    assert found.quality_loss == growing[found.step]
    assert len(calls) <= 2 + len(growing).bit_length()
