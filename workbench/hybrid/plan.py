"""From single losses to a plan: the smallest model that loses no more than allowed.

The *descent* starts from the best model at hand and takes, again and again, the step that costs
the least quality for each byte it saves, until every unit is at its smallest. That gives a row
of plans from precise to coarse. Bisection over their **measured** quality then finds the
coarsest one within the limit; single losses do not add up, so none is trusted for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # figures predict plans too, and need not wait for torch
    from workbench.hybrid.base import Assignment
    from workbench.ternary.policy import Precision


@dataclass(frozen=True)
class Option:
    """One unit in one precision. quality_loss: bits per byte; 0 as the base was trained.
    measured: False for the base's own precision, where the loss is 0 by definition.
    lo, hi: ends of its 95 % interval over documents; None where they are too few for one."""

    unit: str
    precision: Precision
    quality_loss: float
    size_bytes: int
    measured: bool = True
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class Found:
    """step: of the descent. within: whether the measured loss keeps the limit."""

    assignment: Assignment
    step: int
    quality_loss: float
    within: bool


def descent(options: Iterable[Option], base_is_precise: bool) -> list[dict[str, Precision]]:
    """Plans from the most precise to the coarsest; one step changes one unit.

    base_is_precise: start with every unit at its most precise option, since a layer that seems
    to gain from being made coarse shows the noise of the text. Otherwise (a ternary base, whose
    layers may be raised in vain) start with every unit at its least loss.
    """
    of_unit: dict[str, list[Option]] = {}
    for option in options:
        of_unit.setdefault(option.unit, []).append(option)
    now = {
        unit: max(its, key=lambda option: option.size_bytes)
        if base_is_precise
        else min(its, key=lambda option: (option.quality_loss, option.size_bytes))
        for unit, its in of_unit.items()
    }
    plans = [_assignment(now)]
    while True:
        steps = [
            (_cost(now[unit], option), order, option)
            for order, (unit, its) in enumerate(of_unit.items())
            for option in its
            if option.size_bytes < now[unit].size_bytes
        ]
        if not steps:
            return plans
        _, _, chosen = min(steps, key=lambda step: (step[0], step[1], step[2].size_bytes))
        now[chosen.unit] = chosen
        plans.append(_assignment(now))


def coarsest_within(
    plans: list[dict[str, Precision]], loss_of: Callable[[Assignment], float], limit: float
) -> Found:
    """The coarsest plan whose measured loss is at most ``limit``.

    Assumes that loss grows along the descent; where it does not, the result still keeps the
    limit, but a coarser plan might as well. Without any such plan: the one of least loss among
    those measured.
    """
    measured: dict[int, float] = {}

    def keeps(step: int) -> bool:
        measured[step] = loss_of(plans[step])
        return measured[step] <= limit

    last = len(plans) - 1
    if keeps(last):
        return Found(plans[last], last, measured[last], True)
    if not keeps(0):
        best = min(measured, key=measured.__getitem__)
        return Found(plans[best], best, measured[best], False)
    good, bad = 0, last
    while bad - good > 1:
        middle = (good + bad) // 2
        if keeps(middle):
            good = middle
        else:
            bad = middle
    return Found(plans[good], good, measured[good], True)


def _assignment(now: dict[str, Option]) -> dict[str, Precision]:
    return {unit: option.precision for unit, option in now.items()}


def _cost(now: Option, then: Option) -> float:
    """Bits per byte lost for each byte saved."""
    return (then.quality_loss - now.quality_loss) / (now.size_bytes - then.size_bytes)
