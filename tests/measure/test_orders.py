"""Orders: every arm in every place and after every other arm equally often."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest

from workbench.measure.orders import balanced_orders, williams


@pytest.mark.parametrize("count", range(2, 8))
def test_places_and_neighbours_are_balanced(count: int) -> None:
    arms = [f"arm{i}" for i in range(count)]
    square = williams(arms)
    assert len(square) == (2 * count if count % 2 else count)
    places = Counter((place, arm) for row in square for place, arm in enumerate(row))
    assert set(places.values()) == {len(square) // count} and len(places) == count**2
    neighbours = Counter(pair for row in square for pair in pairwise(row))
    assert len(neighbours) == count * (count - 1), "nobody follows itself"
    assert len(set(neighbours.values())) == 1


def test_every_round_holds_each_order_once_and_a_seed_repeats_it() -> None:
    arms = ["a", "b", "c", "d"]
    orders = list(islice(balanced_orders(arms, 3), 12))
    for begin in (0, 4, 8):
        assert sorted(orders[begin : begin + 4]) == sorted(williams(arms))
    assert orders == list(islice(balanced_orders(arms, 3), 12))
