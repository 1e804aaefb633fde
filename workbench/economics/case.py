"""The case as one pure function: a fleet for each arm, its cost a year, what a change pays.

A :class:`Case` holds every number by name, each a :class:`~.quantity.Quantity` that says how it is
known. :func:`evaluate` computes all figures from them and takes any of them anew, also as arrays:
the sliders of notebook 06, the tornado and the Monte Carlo are the same function.

Energy: a machine draws its idle power all year, and each request adds its work. Both are metered
in the served load where that was (``idle_w``, ``work_j``), else the work is machine time x (power
under load - idle power).

Fleet: a simulation gives the rate that one replica carries within its targets at p99,
``replica_rate`` (:mod:`workbench.planner.rates`), and an arm needs as many as carry the peak. Where
the pilot names today's accelerators they are taken to carry the peak in full precision. Without a
simulation a request takes ``request_s`` of a machine, of whose time the peak may take
``utilisation``; today's accelerators are then needed in the ratio of what a request takes. That is
the fluid number; whole accelerators, then whole servers with their spares, are what is bought or
freed.

Cost of a year: annuities of what is held, what is paid each year, energy and demand at the meter
of the building, the annuity of what the change costs once. A freed server is switched off; unless
it is sold it goes on costing its price. Against full precision: net present value over the horizon
with the growing load, and the time until what was paid once has come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.economics.money import annuity, npv, payback_years
from workbench.economics.quantity import Quantity
from workbench.economics.replicas import rate_carried, replicas_needed
from workbench.economics.year import YearBill, YearSums, year_bill
from workbench.pilot.sections.cost import FleetRules, Item, OneOff

DAY_S, YEAR_DAYS = 86_400.0, 365
TRAINING = "training"
"""One-off item that only a trained arm pays."""
ACCEPTED = ("accepted", "passed")
"""Numbers of an arm, each a share of its answers, that an accepted answer is counted by: it came
whole, it kept to its check."""
ROUNDING = 1e-9
"""A need that lies within this of a whole number takes no further machine."""


@dataclass(frozen=True)
class CaseArm:
    """name: of the arm. prefill_share: of a request's machine time that its prompt takes.
    prefill_energy: of its energy; None takes that of the time. trained: whether it took a training,
    which is paid for once.

    Where its fleet is simulated: cells: what a replica of a cell of 1, 2, ... carries over
    ``replica_rate``, the last 1; busy: of its time at that rate."""

    name: str
    prefill_share: float
    prefill_energy: float | None = None
    trained: bool = True
    cells: tuple[float, ...] = ()
    busy: float = 0.0


@dataclass(frozen=True)
class Case:
    """numbers: by name, for ``evaluate``; those of an arm end with its name:
    ``replica_rate.ternary`` where fleets are simulated, else ``request_s.ternary``; and either
    ``work_j`` and ``idle_w`` or ``power_w`` and ``idle_share``, which without an arm are of all of
    them.

    arms: full precision first. accelerators: of today, or None. prompt_tokens, output_tokens: of a
    request, means. has_power: whether the arms' power is known; without it there is no energy and
    no cost of anything that holds it, ``no_power`` says why.
    """

    arms: tuple[CaseArm, ...]
    numbers: dict[str, Quantity]
    sums: YearSums
    fleet: FleetRules
    items: tuple[Item, ...]
    one_off: tuple[OneOff, ...]
    currency: str
    horizon_y: int
    prompt_tokens: float
    output_tokens: float
    accelerators: int | None = None
    per_degree: float = 0.0
    no_power: str = ""
    sample: bool = True
    texts: tuple[str, ...] = ()

    @property
    def baseline(self) -> str:
        return self.arms[0].name

    @property
    def simulated(self) -> bool:
        """Whether fleets are those of the simulation, of all arms alike."""
        return all(arm.cells for arm in self.arms)

    def arm(self, name: str) -> CaseArm:
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class Held:
    """Of one arm in one year. fluid, whole: accelerators. servers: with spares and, for another arm
    than full precision, the warm fallback: those that run. held: those that are paid for. fallback:
    servers of the warm fallback among those that run."""

    fluid: Any
    whole: Any
    servers: Any
    held: Any
    fallback: int = 0


Numbers = Mapping[str, Any]


def evaluate(case: Case, changes: Numbers | None = None) -> dict[str, dict[str, Any]]:
    """Figures of every arm: arm -> name -> value (an array where a change is one).

    Raises KeyError for a change that the case does not know.
    """
    unknown = sorted(set(changes or {}) - set(case.numbers))
    if unknown:
        raise KeyError(f"{', '.join(unknown)}: of {', '.join(sorted(case.numbers))}")
    values = {name: np.asarray(q.value, float) for name, q in case.numbers.items()}
    values |= {name: np.asarray(value, float) for name, value in (changes or {}).items()}
    growth = [(1 + values["growth"]) ** year for year in range(case.horizon_y)]
    fleets = {arm.name: _fleets(case, arm.name, values, growth) for arm in case.arms}
    full = fleets[case.baseline]
    found = {name: _fleet_figures(own[0], full[0]) for name, own in fleets.items()}
    if case.no_power:
        return found
    years = {
        name: [_year(case, name, values, *each) for each in zip(growth, own, full, strict=True)]
        for name, own in fleets.items()
    }
    for arm in case.arms:
        found[arm.name] |= _money_figures(case, arm, values, fleets, years)
    return found


def fluid_need(case: Case, arm: str, values: Numbers, scale: Any) -> Any:
    """Accelerators that the load needs at its peak, as a fraction."""
    if case.simulated:
        peak = _peak_per_s(case, values) * scale
        return replicas_needed(peak, values[f"replica_rate.{arm}"], case.arm(arm).cells)
    if case.accelerators is None:
        rate = values["requests_per_day"] * scale / DAY_S * values["peak_over_mean"]
        return rate * values[f"request_s.{arm}"] / values["utilisation"]
    today = case.numbers
    load = values["requests_per_day"] * scale / today["requests_per_day"].value
    room = today["utilisation"].value / values["utilisation"]
    ratio = values[f"request_s.{arm}"] / values[f"request_s.{case.baseline}"]
    return case.accelerators * ratio * load * room


def _peak_per_s(case: Case, values: Numbers) -> Any:
    """Of the load's busy times: what today's accelerators carry, or the declared requests."""
    if case.accelerators is None:
        return values["requests_per_day"] / DAY_S * values["peak_over_mean"]
    more = values["requests_per_day"] / case.numbers["requests_per_day"].value
    full = values[f"replica_rate.{case.baseline}"]
    return more * rate_carried(case.accelerators, full, case.arm(case.baseline).cells)


def machine_s(case: Case, arm: str, values: Numbers) -> Any:
    """Of a machine for a request, s."""
    if case.simulated:
        return case.arm(arm).busy / values[f"replica_rate.{arm}"]
    return values[f"request_s.{arm}"]


def _fleets(case: Case, arm: str, values: Numbers, growth: list[Any]) -> list[Held]:
    """Of each year of the horizon."""
    rules = case.fleet
    fallback = 0 if arm == case.baseline else rules.warm_fallback_servers
    owned = _servers(case, fluid_need(case, case.baseline, values, 1.0)) + rules.spare_servers
    years, held = [], owned
    for year, scale in enumerate(growth):
        fluid = fluid_need(case, arm, values, scale)
        servers = _servers(case, fluid) + rules.spare_servers + fallback
        sells = rules.freed_is_sold and year == 0
        held = servers if sells else np.maximum(held, servers)
        years.append(Held(fluid, np.ceil(fluid - ROUNDING), servers, held, fallback))
    return years


def _servers(case: Case, fluid: Any) -> Any:
    return np.ceil(np.ceil(fluid - ROUNDING) / case.fleet.per_server)


def _fleet_figures(own: Held, full: Held) -> dict[str, Any]:
    return {
        "accelerators_fluid": own.fluid,
        "accelerators": own.whole,
        "servers": own.servers,
        "servers_held": own.held,
        "servers_freed": full.servers - own.servers,
    }


def _money_figures(
    case: Case, arm: CaseArm, values: Numbers, fleets: dict[str, list[Held]],
    all_years: dict[str, list[_Year]],
) -> dict[str, Any]:  # fmt: skip
    own, full = fleets[arm.name], fleets[case.baseline]
    years, years0 = all_years[arm.name], all_years[case.baseline]
    rate = values["discount_rate"]
    once = _once(case, arm, values)
    capital = sum(
        _count(case, item, own[0].held, years[0].it_peak_kw) * values[f"price.{item.name}"]
        * annuity(rate, item.life_y, item.residual) for item in case.items
    )  # fmt: skip
    bill, running = years[0].bill, years[0].running
    annual = capital + running + bill.energy + bill.demand + once * annuity(rate, case.horizon_y)
    requests = values["requests_per_day"] * YEAR_DAYS
    power = bill.energy + bill.demand
    energy_share = arm.prefill_share if arm.prefill_energy is None else arm.prefill_energy
    prompts = (annual - power) * arm.prefill_share + power * energy_share
    figures = {
        "energy_kwh": bill.kwh,
        "energy_j_per_request": years[0].it_kwh * 3.6e6 / requests,
        "capital": capital,
        "running": running,
        "energy": bill.energy,
        "demand": bill.demand,
        "one_off": once,
        "year": annual,
        "per_1k_requests": 1e3 * annual / requests,
        "per_1m_input_tokens": 1e6 * prompts / (requests * case.prompt_tokens),
        "per_1m_output_tokens": 1e6 * (annual - prompts) / (requests * case.output_tokens),
    }
    shares = [values[n] for of in ACCEPTED if (n := f"{of}.{arm.name}") in values]
    accepted = np.prod(np.broadcast_arrays(*shares), axis=0) if shares else np.zeros(1)
    if np.ravel(accepted)[0] > 0:
        figures["per_accepted_answer"] = annual / (requests * accepted)
    if arm.name != case.baseline:
        flows = _flows(case, once, (own, years), (full, years0), values)
        figures |= {"npv": npv(rate, flows), "payback_y": payback_years(flows)}
        figures["energy_saving_kwh"] = years0[0].bill.kwh - bill.kwh
        figures["energy_saving"] = (
            years0[0].bill.energy + years0[0].bill.demand - bill.energy - bill.demand
        )
    return figures


@dataclass(frozen=True)
class _Year:
    bill: YearBill
    running: Any
    it_kwh: Any
    it_peak_kw: Any


def _year(case: Case, arm: str, values: Numbers, scale: Any, own: Held, full: Held) -> _Year:
    it = _it_kw(case, arm, values, scale, own)
    it0 = it if arm == case.baseline else _it_kw(case, case.baseline, values, scale, full)
    slope = values["pue_slope"]
    overhead = values["pue"] - slope - case.per_degree * case.sums.mean_w
    bill = year_bill(case.sums, it, it0, slope, overhead, case.per_degree, values["price_scale"])
    peak = it[0] + it[1] * case.sums.most_s
    running = sum(
        _count(case, item, own.held, peak) * values[f"per_year.{item.name}"] for item in case.items
    )
    return _Year(bill, running, it[0] * case.sums.n + it[1] * case.sums.n_s, peak)


def _it_kw(case: Case, arm: str, values: Numbers, scale: Any, own: Held) -> tuple[Any, Any]:
    """(idle, busy) of the servers that run: what they draw all year, and what their work adds."""
    idle_kw = _idle_kw(arm, values)
    machines = own.servers * case.fleet.per_server
    rate = values["requests_per_day"] * scale / DAY_S
    busy = rate * machine_s(case, arm, values)
    # Machines cannot be busier than all the time.
    carried = np.minimum(busy, machines) / busy
    drawing = [item for item in case.items if item.watts]
    always = sum(item.watts * _count(case, item, own.servers, 0.0) for item in drawing) / 1e3
    if own.fallback:  # they hold the model in full precision
        more_kw = _idle_kw(case.baseline, values) - idle_kw
        always = always + own.fallback * case.fleet.per_server * more_kw
    return machines * idle_kw + always, rate * carried * _work_kj(case, arm, values)


def _idle_kw(arm: str, values: Numbers) -> Any:
    if f"idle_w.{arm}" in values or "idle_w" in values:
        return _own(values, "idle_w", arm) / 1e3
    return _own(values, "idle_share", arm) * _own(values, "power_w", arm) / 1e3


def _work_kj(case: Case, arm: str, values: Numbers) -> Any:
    """Of a request, above what the idle machine draws."""
    if (name := f"work_j.{arm}") in values:
        return values[name] / 1e3
    power_kw = _own(values, "power_w", arm) / 1e3
    return machine_s(case, arm, values) * (power_kw - _idle_kw(arm, values))


def _own(values: Numbers, name: str, arm: str) -> Any:
    """The arm's own number, or the one that is declared for all arms."""
    return values[own if (own := f"{name}.{arm}") in values else name]


def _count(case: Case, item: Item, servers: Any, peak_kw: Any) -> Any:
    """How many of an item a fleet has."""
    match item.per:
        case "accelerator":
            return item.count * servers * case.fleet.per_server
        case "server":
            return item.count * servers
        case "rack":
            return item.count * np.ceil(servers / case.fleet.servers_per_rack)
        case "kw":
            return item.count * peak_kw
    return item.count


def _once(case: Case, arm: CaseArm, values: Numbers) -> Any:
    """What the change costs, once; full precision is where the fleet is already."""
    if arm.name == case.baseline:
        return np.asarray(0.0)
    price = case.sums.p / case.sums.n * (1 + case.sums.vat) * values["price_scale"]
    paid: Any = np.asarray(0.0)
    for item in case.one_off:
        if item.name == TRAINING and not arm.trained:
            continue
        work = values[f"hours.{item.name}"] * values[f"per_hour.{item.name}"]
        energy = values[f"kwh.{item.name}"] * values["pue"] * price
        paid = paid + values[f"once.{item.name}"] + work + energy
    return paid


def _flows(
    case: Case, once: Any, own: tuple[list[Held], list[_Year]],
    full: tuple[list[Held], list[_Year]], values: Numbers,
) -> list[Any]:  # fmt: skip
    """Full precision's payments less this arm's, now and at the end of each year."""
    owned = full[0][0].held

    def payments(fleet: list[Held], years: list[_Year]) -> list[Any]:
        paid: list[Any] = [0.0 * owned for _ in range(case.horizon_y + 1)]
        before = owned
        for year, (held, costs) in enumerate(zip(fleet, years, strict=True)):
            more = np.maximum(0.0, held.held - before)
            paid[year] = paid[year] + _price(case, before + more, values) - _price(
                case, before, values)  # fmt: skip
            paid[year + 1] = paid[year + 1] + costs.running + costs.bill.energy + costs.bill.demand
            before = held.held
        return paid

    flows = [a - b for a, b in zip(payments(*full), payments(*own), strict=True)]
    sold = np.maximum(0.0, _price(case, owned, values) - _price(case, own[0][0].held, values))
    flows[0] = flows[0] - once + sold * values["resale_share"]
    return flows


def _price(case: Case, servers: Any, values: Numbers) -> Any:
    """Of buying a fleet; what is counted by its power is not bought or sold by the server."""
    return sum(
        _count(case, item, servers, 0.0) * values[f"price.{item.name}"] for item in case.items
    )
