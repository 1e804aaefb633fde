"""A small case whose every figure can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.economics.case import Case, CaseArm
from workbench.economics.quantity import Quantity
from workbench.economics.tariff import year_prices
from workbench.economics.year import load_shape, year_sums
from workbench.pilot.sections.cost import FleetRules, Item, OneOff, Tariff


def small_case(**changes) -> Case:
    """One request a second all year; 2 s of a machine in full precision, 1 s in the other arm, half
    of a machine's time may be used: four servers and two. 1 kW a machine under load, 0.4 kW idle;
    PUE 1.5 with a slope of 1.1; 0.20 a kWh; a server costs 10,000 and lasts four years; 8 %."""
    sums = year_sums(year_prices(Tariff(), 0.20), load_shape(None, None))
    numbers = {
        "requests_per_day": Quantity(86_400.0, "assumed"), "growth": Quantity(0.0, "assumed"),
        "price_scale": Quantity(1.0, "assumed"), "pue": Quantity(1.5, "assumed"),
        "pue_slope": Quantity(1.1, "assumed"), "utilisation": Quantity(0.5, "assumed"),
        "peak_over_mean": Quantity(1.0, "measured"), "discount_rate": Quantity(0.08, "assumed"),
        "resale_share": Quantity(0.2, "assumed"), "price.server": Quantity(10_000.0, "assumed"),
        "per_year.server": Quantity(0.0, "assumed"), "once.training": Quantity(1_000.0, "assumed"),
        "kwh.training": Quantity(0.0, "assumed"), "hours.training": Quantity(0.0, "measured"),
        "per_hour.training": Quantity(0.0, "assumed"),
    }  # fmt: skip
    for arm, seconds in (("full_precision", 2.0), ("ternary", 1.0)):
        numbers[f"request_s.{arm}"] = Quantity(
            seconds, "measured", lo=0.97 * seconds, hi=1.03 * seconds
        )
        numbers[f"power_w.{arm}"] = Quantity(1_000.0, "measured")
        numbers[f"idle_share.{arm}"] = Quantity(0.4, "assumed")
        numbers[f"accepted.{arm}"] = Quantity(0.9, "measured", lo=0.85, hi=0.94)
    case = Case(
        (CaseArm("full_precision", 0.5), CaseArm("ternary", 0.6)), numbers, sums, FleetRules(),
        (Item(name="server", what="chassis", price=10_000.0),),
        (OneOff(name="training", price=1_000.0),), "EUR", 4, 1000.0, 100.0,
    )  # fmt: skip
    return replace(case, **changes)


def simulated_case(**changes) -> Case:
    """The same with simulated fleets: a replica carries 0.25 requests a second in full precision
    and 0.5 in the other arm, half of its time at work; one alone carries 0.6 of that."""
    case = small_case()
    numbers = {
        name: number for name, number in case.numbers.items()
        if name != "utilisation" and not name.startswith("request_s")
    }  # fmt: skip
    for arm, rate in (("full_precision", 0.25), ("ternary", 0.5)):
        numbers[f"replica_rate.{arm}"] = Quantity(rate, "modelled", lo=0.97 * rate, hi=1.03 * rate)
    arms = tuple(replace(arm, cells=(0.6, 0.8, 1.0), busy=0.5) for arm in case.arms)
    return replace(case, **({"arms": arms, "numbers": numbers} | changes))


@pytest.fixture
def make_case():
    return small_case


@pytest.fixture
def make_simulated():
    return simulated_case
