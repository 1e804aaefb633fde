"""What the case says, how sure that is, and what it turns on: in well under 100 ms.

Three things are kept apart. **Kind**: a figure is as weak as the weakest number it is made of.
**Interval**: measured numbers are drawn from their own intervals (Monte Carlo) while what is
assumed stays as declared, so an interval says what measuring longer would tell. **Tornado**: each
assumed number is turned to both ends of its range alone, and the saving of a year is looked at: it
says which assumption to find out about first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.economics.case import ACCEPTED, ROUNDING, TRAINING, Case, evaluate
from workbench.economics.quantity import Quantity, weakest
from workbench.records.metric import MetricKind
from workbench.wording.counts import number_of

Z = 1.959963984540054
"""Half of a normal 95 % interval, in standard deviations."""
FLEET = ("accelerators_fluid", "accelerators", "servers", "servers_held", "servers_freed")
SLIDERS = ("price_scale", "pue", "growth", "utilisation", "requests_per_day")
UNITS = {
    "accelerators_fluid": "accelerators", "accelerators": "accelerators", "servers": "servers",
    "servers_held": "servers", "servers_freed": "servers", "energy_kwh": "kWh",
    "energy_saving_kwh": "kWh", "energy_j_per_request": "J", "payback_y": "years",
}  # fmt: skip
"""Of figures that are not money."""
SHOWN_TURNS = 10


@dataclass(frozen=True)
class CaseFigure:
    """One figure of one arm. lo, hi: at 95 %, from the measured intervals alone; None where none
    of its numbers has one. made_of: the weakest of its numbers, by name."""

    arm: str
    name: str
    value: float | None
    unit: str
    kind: MetricKind
    lo: float | None = None
    hi: float | None = None
    made_of: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Turn:
    """An assumed number at both ends of its range, and the saving of a year there.

    low, high: the number; saving_low, saving_high: the saving at these.
    """

    number: str
    arm: str
    low: float
    high: float
    saving_low: float
    saving_high: float

    @property
    def swing(self) -> float:
        return abs(self.saving_high - self.saving_low)


@dataclass(frozen=True)
class CaseResult:
    """figures: of every arm. tornado: for each arm but the first, the widest swing first."""

    figures: tuple[CaseFigure, ...]
    tornado: tuple[Turn, ...]

    def figure(self, arm: str, name: str) -> CaseFigure:
        return next(f for f in self.figures if (f.arm, f.name) == (arm, name))


def what_if(
    case: Case, changes: Mapping[str, float] | None = None, *, draws: int = 1000, seed: int = 0,
    uncertainty: float = 0.2,
) -> CaseResult:  # fmt: skip
    """All figures of the case, with ``changes`` to its numbers by name.

    draws: of the Monte Carlo. uncertainty: each way, of an assumed number without a range of its
    own. Raises KeyError for a change that the case does not know.
    """
    changed = replace(case, numbers=_changed(case.numbers, changes or {}))
    ends = {} if case.no_power else _turned(changed, uncertainty)
    drawn = _drawn(changed, draws, seed)
    columns = _columns(changed, ends, drawn, draws)
    values = evaluate(changed, columns)
    first = 1 + 2 * len(ends)
    fallback = _fallback(changed, values)
    named = [
        (arm, name, value)
        for arm, own in values.items()
        for name, value in (own | fallback.get(arm, {})).items()
    ]
    ends_of = _intervals([value for _, _, value in named], first)
    figures = tuple(
        _figure(changed, *one, ends_of.get(place)) for place, one in enumerate(named)
    )  # fmt: skip
    return CaseResult(figures, _turns(changed, ends, values) if ends else ())


def _intervals(values: Sequence[Any], first: int) -> dict[int, tuple[float, float]]:
    """Place -> 95 % of the draws, which begin at column ``first``; of those that have some, all
    finite. One call for all: a quantile of each alone would take most of the time."""
    spreads = {
        place: value[first:] for place, value in enumerate(values)
        if np.ndim(value) and len(value) > first
    }  # fmt: skip
    spreads = {place: spread for place, spread in spreads.items() if np.isfinite(spread).all()}
    if not spreads:
        return {}
    low, high = np.quantile(np.stack(list(spreads.values())), [0.025, 0.975], axis=1)
    return {place: (float(low[k]), float(high[k])) for k, place in enumerate(spreads)}


def _columns(
    case: Case, ends: Mapping[str, tuple[float, float]], drawn: Mapping[str, np.ndarray], draws: int
) -> dict[str, np.ndarray]:
    """Values of every number that moves, so that one evaluation answers all: the first column is
    the case as it is, then each turned number at its ends, then the draws."""
    length = 1 + 2 * len(ends) + (draws if drawn else 0)
    moved = {}
    for name in {*ends, *drawn}:
        moved[name] = np.full(length, case.numbers[name].value)
    for place, (name, of) in enumerate(ends.items()):
        moved[name][1 + 2 * place : 3 + 2 * place] = of
    for name, column in drawn.items():
        moved[name][1 + 2 * len(ends) :] = column
    return moved


def _fallback(case: Case, values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the warm fallback costs a year: the year with it less the year without."""
    if case.no_power or not case.fleet.warm_fallback_servers:
        return {}
    rules = case.fleet.model_copy(update={"warm_fallback_servers": 0})
    without = evaluate(replace(case, fleet=rules))
    return {
        arm.name: {"fallback": np.ravel(values[arm.name]["year"])[0] - without[arm.name]["year"]}
        for arm in case.arms[1:]
    }


def _turned(case: Case, uncertainty: float) -> dict[str, tuple[float, float]]:
    """Of each assumed number the ends of its range, where it has one."""
    ranges = {
        name: _range(name, number, uncertainty)
        for name, number in case.numbers.items()
        if number.kind == "assumed"
    }
    return {name: ends for name, ends in ranges.items() if ends[0] != ends[1]}


def _turns(
    case: Case, ends: Mapping[str, tuple[float, float]], values: Mapping[str, Mapping[str, Any]]
) -> tuple[Turn, ...]:
    """The saving of a year at the columns that :func:`_columns` gave the turned numbers."""
    base, length = values[case.baseline]["year"], 1 + 2 * len(ends)
    turns = []
    for arm in case.arms[1:]:
        saving = base - values[arm.name]["year"]
        saving = np.broadcast_to(saving, (max(length, np.size(saving)),))
        for place, name in enumerate(ends):
            low, high = (float(saving[1 + 2 * place + k]) for k in (0, 1))
            turns.append(Turn(name, arm.name, *ends[name], low, high))
    felt = [turn for turn in turns if turn.swing > ROUNDING * abs(float(np.max(base)))]
    return tuple(sorted(felt, key=lambda turn: -turn.swing))


def numbers_of(case: Case, arm: str, figure: str) -> list[str]:
    """The numbers that a figure is made of, by name."""
    full = case.baseline
    time = "replica_rate" if case.simulated else "request_s"
    fleet = {f"{time}.{arm}", "requests_per_day", "utilisation"}
    if case.accelerators is None:
        fleet.add("peak_over_mean")
    else:
        fleet |= {f"{time}.{full}", "accelerators"}
    if figure not in ("accelerators_fluid", "accelerators", "servers"):
        fleet.add(f"{time}.{full}")  # today's fleet is that of full precision
    if figure in FLEET:
        return sorted(fleet & set(case.numbers))
    of_energy = (time, "work_j", "idle_w", "power_w", "idle_share")
    energy = {f"{name}.{of}" for of in {arm, full} for name in of_energy}
    energy |= {
        "idle_w",
        "power_w",
        "idle_share",
        "requests_per_day",
        "pue",
        "pue_slope",
        "load_hours",
    }
    if figure == "energy_j_per_request":
        of_arms = {arm, full} if case.fleet.warm_fallback_servers else {arm}
        own = {f"{name}.{of}" for of in of_arms for name in of_energy} | {*of_energy}
        fleet.discard(f"{time}.{full}" if case.accelerators is None and arm != full else "")
        return sorted((fleet | own) & set(case.numbers))
    if figure in ("energy_kwh", "energy_saving_kwh"):
        return sorted((fleet | energy) & set(case.numbers))
    priced = fleet | energy | {"price_scale"}
    if figure in ("energy", "demand", "energy_saving"):
        return sorted(priced & set(case.numbers))
    items = {n for n in case.numbers if n.startswith(("price.", "per_year."))}
    once = _once_numbers(case, arm)
    if figure == "one_off":
        return sorted((once | {"pue", "price_scale"}) & set(case.numbers))
    if figure in ("capital", "running"):
        return sorted((fleet | items | {"discount_rate"}) & set(case.numbers))
    everything = priced | items | once | {"discount_rate"}
    if figure == "per_accepted_answer":
        everything |= {f"{of}.{arm}" for of in ACCEPTED}
    if figure in ("npv", "payback_y"):
        everything |= {"growth", "resale_share"}
    return sorted(everything & set(case.numbers))


def _once_numbers(case: Case, arm: str) -> set[str]:
    """Of what the change costs once for this arm."""
    of = next(each for each in case.arms if each.name == arm)
    if arm == case.baseline:
        return set()
    paid = [item.name for item in case.one_off if of.trained or item.name != TRAINING]
    return {f"{part}.{name}" for name in paid for part in ("once", "hours", "per_hour", "kwh")}


def _figure(
    case: Case, arm: str, name: str, value: Any, ends: tuple[float, float] | None
) -> CaseFigure:
    used = {n: case.numbers[n] for n in numbers_of(case, arm, name)}
    used = {n: q for n, q in used.items() if q.value != 0 or n in ("pue_slope", "growth")}
    kind = weakest(q.kind for q in used.values())
    weak = tuple(n for n, q in used.items() if q.kind == kind)
    unit = UNITS.get(name, case.currency)
    number = float(np.ravel(value)[0])
    if not math.isfinite(number):
        reason = f"does not come back within {number_of(case.horizon_y, 'year')}"
        return CaseFigure(arm, name, None, unit, kind, made_of=weak, reason=reason)
    lo, hi = ends or (None, None)
    return CaseFigure(arm, name, number, unit, kind, lo, hi, weak)


def _changed(numbers: dict[str, Quantity], changes: Mapping[str, float]) -> dict[str, Quantity]:
    unknown = sorted(set(changes) - set(numbers))
    if unknown:
        raise KeyError(f"{', '.join(unknown)}: of {', '.join(sorted(numbers))}")
    return numbers | {
        name: replace(numbers[name], value=value, lo=None, hi=None, kind="assumed")
        for name, value in changes.items()
        if value != numbers[name].value
    }


def _drawn(case: Case, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Draws of the numbers that have a measured interval; of positive ones on a log scale."""
    generator = np.random.default_rng(seed)
    drawn = {}
    for name, q in case.numbers.items():
        if q.kind == "assumed" or q.lo is None or q.hi is None:
            continue
        normal = generator.standard_normal(draws)
        is_share = name.startswith(OF_ANSWERS)
        if q.lo > 0 and q.value > 0 and not is_share:
            low, middle, high = (math.log(x) for x in (q.lo, q.value, q.hi))
            side = np.where(normal < 0, middle - low, high - middle)
            drawn[name] = np.exp(middle + normal * side / Z)
        else:
            side = np.where(normal < 0, q.value - q.lo, q.hi - q.value)
            column = q.value + normal * side / Z
            drawn[name] = np.clip(column, 1e-6, 1.0) if is_share else column
    return drawn


OF_ANSWERS = tuple(f"{of}." for of in ACCEPTED)
SHARES = ("utilisation", "idle_share", "resale_share", *OF_ANSWERS)


def _range(name: str, number: Quantity, uncertainty: float) -> tuple[float, float]:
    """Of an assumed number: its own, or a share each way; a share of something stays one."""
    if number.lo is not None and number.hi is not None:
        return number.lo, number.hi
    low, high = number.value * (1 - uncertainty), number.value * (1 + uncertainty)
    if name.startswith(SHARES):
        high = min(high, 1.0)
    if name in ("pue", "pue_slope"):
        # What is turned is what lies above the IT load itself.
        above = max(0.0, number.value - 1.0)
        low, high = number.value - uncertainty * above, number.value + uncertainty * above
    return min(low, high), max(low, high)
