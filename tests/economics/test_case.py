"""TCO to the cent, by hand; what is assumed, what it turns on, and what only grows."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.economics.case import evaluate
from workbench.economics.money import annuity, npv, payback_years
from workbench.economics.quantity import Quantity, weakest
from workbench.economics.what_if import numbers_of, what_if
from workbench.pilot.sections.cost import FleetRules, Item
from workbench.report.economy_rows import metrics


def cents(value) -> float:
    return round(float(value), 2)


def test_present_values_by_hand() -> None:
    """The arithmetic stands in the functions' docstrings."""
    assert cents(1000 * annuity(0.08, 4)) == 301.92
    assert cents(1000 * annuity(0.08, 4, 0.2)) == 257.54
    assert annuity(0.0, 4, 0.2) == pytest.approx(0.2)
    assert cents(npv(0.10, [-1000, 400, 400, 400])) == -5.26
    assert payback_years([-1000, 400, 400, 400]) == 2.5
    assert np.isnan(payback_years([-1000, 10])) and payback_years([5.0, 1.0]) == 0


def test_a_year_to_the_cent(make_case) -> None:
    """Full precision: 1 request/s x 2 s / 0.5 = 4 servers; idle 4 x 0.4 = 1.6 kW and work
    2 x 0.6 = 1.2 kW: 2.8 kW x 1.5 x 8,760 h = 36,792 kWh x 0.20 = 7,358.40.
    Ternary: 2 servers, 0.8 + 0.6 = 1.4 kW; the meter falls by 1.4 kW x 1.1 (the slope, not 1.5):
    13,490.4 kWh, so 23,301.6 kWh x 0.20 = 4,660.32; 2,698.08 less.
    Four servers of 10,000 are held in both: 40,000 x 0.301921 = 12,076.83 a year; the change costs
    1,000 once: 301.92 a year. Together 19,435.23 and 17,039.07; for 31,536,000 requests 0.6163 and
    0.5403 a thousand. Half of full precision's time is prefill: 19,435.23 x 0.5 over 31,536 million
    input tokens is 0.3081 a million, and over 3,153.6 million output tokens 3.0814; of ternary's
    0.6: 0.3242 and 2.1612. Nine of ten answers are accepted: 17,039.07 / 28,382,400 = 0.000600."""
    full, ternary = evaluate(make_case()).values()
    assert (full["servers"], ternary["servers"]) == (4, 2)
    assert (ternary["servers_held"], ternary["servers_freed"]) == (4, 2)
    assert (cents(full["energy_kwh"]), cents(full["energy"])) == (36_792.00, 7_358.40)
    assert (cents(ternary["energy_kwh"]), cents(ternary["energy"])) == (23_301.60, 4_660.32)
    assert cents(ternary["energy_saving"]) == 2_698.08
    assert cents(full["capital"]) == cents(ternary["capital"]) == 12_076.83
    assert (cents(full["year"]), cents(ternary["year"])) == (19_435.23, 17_039.07)
    assert round(float(full["per_1k_requests"]), 4) == 0.6163
    assert round(float(ternary["per_1k_requests"]), 4) == 0.5403
    assert round(float(full["per_1m_input_tokens"]), 4) == 0.3081
    assert round(float(full["per_1m_output_tokens"]), 4) == 3.0814
    assert round(float(ternary["per_1m_input_tokens"]), 4) == 0.3242
    assert round(float(ternary["per_1m_output_tokens"]), 4) == 2.1612
    assert round(float(ternary["per_accepted_answer"]), 6) == 0.000600


def test_an_accepted_answer_kept_to_its_check(make_case) -> None:
    """Three of four answers keep to their check: 0.000600 / 0.75 = 0.000800. One of the shares is
    drawn from its interval too, so the cost of an accepted answer is known worse."""
    case = make_case()
    passed = {"passed.ternary": Quantity(0.75, "measured", lo=0.6, hi=0.86)}
    checked = replace(case, numbers=case.numbers | passed)
    before, after = (
        what_if(each).figure("ternary", "per_accepted_answer") for each in (case, checked)
    )
    assert round(before.value, 6) == 0.000600 and round(after.value, 6) == 0.000800
    assert after.hi / after.value > 1.1 * before.hi / before.value
    assert "passed.ternary" in numbers_of(checked, "ternary", "per_accepted_answer")
    assert what_if(checked).figure("full_precision", "per_accepted_answer") == what_if(case).figure(
        "full_precision", "per_accepted_answer"
    )
    # Of none that keeps to it there is no cost, and no division by nothing.
    none = replace(
        case, numbers=case.numbers | {"passed.ternary": Quantity(0.0, "measured", lo=0.0, hi=0.1)}
    )
    assert "per_accepted_answer" not in evaluate(none)["ternary"]
    names = {(figure.arm, figure.name) for figure in what_if(none).figures}
    assert ("ternary", "per_accepted_answer") not in names
    (metric,) = (
        m for m in metrics(none, what_if(none))
        if m.name == "cost_per_accepted_answer" and m.labels["arm"] == "ternary"
    )  # fmt: skip
    assert metric.value is None and "keeps to its check" in metric.reason


def test_a_served_load_s_energy_to_the_cent(make_case) -> None:
    """Served, a request of full precision takes 2 s x (1,000 - 400) W = 1,200 J above the 400 W of
    the idle machine, ternary's 600 J: the same year as by machine time. At 900 J instead ternary's
    work is 0.9 kW, its fleet draws 0.8 + 0.9 = 1.7 kW, 1.1 less than 2.8; 1.1 x 1.1 x 8,760 h less
    than 36,792 kWh are 26,192.40, for 5,238.48. Its prompts took 0.6 of the time and 0.25 of the
    energy: of 17,617.23, (17,617.23 - 5,238.48) x 0.6 + 5,238.48 x 0.25 = 8,736.87 for 31,536
    million input tokens is 0.2770 a million; 8,880.36 for 3,153.6 million of output 2.8159."""
    served = make_case()
    numbers = {n: q for n, q in served.numbers.items() if not n.startswith(("power_", "idle_"))}
    for arm, joules in (("full_precision", 1200.0), ("ternary", 600.0)):
        numbers[f"work_j.{arm}"] = Quantity(joules, "measured", "J", "", joules - 60, joules + 60)
        numbers[f"idle_w.{arm}"] = Quantity(400.0, "measured", "W")
    served = replace(served, numbers=numbers)
    for arm, figures in evaluate(make_case()).items():
        for name, value in figures.items():
            assert evaluate(served)[arm][name] == pytest.approx(value), (arm, name)
    split = replace(served, arms=(served.arms[0], replace(served.arms[1], prefill_energy=0.25)))
    ternary = evaluate(split, {"work_j.ternary": 900.0})["ternary"]
    assert (cents(ternary["energy_kwh"]), cents(ternary["energy"])) == (26_192.40, 5_238.48)
    assert round(float(ternary["per_1m_input_tokens"]), 4) == 0.2770
    assert round(float(ternary["per_1m_output_tokens"]), 4) == 2.8159
    result = what_if(served, draws=200)
    energy = result.figure("ternary", "energy_j_per_request")
    assert "work_j.ternary" in numbers_of(served, "ternary", "energy_j_per_request")
    assert energy.lo is not None and energy.lo < 1_400 < energy.hi


def test_training_is_paid_once_by_the_arm_that_was_trained(make_case) -> None:
    """4,000 h at 2.50 are 10,000, 3,500 kWh x PUE 1.5 x 0.20 1,050; with 1,000 in all 12,050."""
    bought = {"hours.training": 4_000.0, "per_hour.training": 2.5, "kwh.training": 3_500.0}
    case = make_case()
    assert cents(evaluate(case, bought)["ternary"]["one_off"]) == 12_050.00
    assert evaluate(case, bought)["full_precision"]["one_off"] == 0
    untrained = replace(case, arms=(case.arms[0], replace(case.arms[1], trained=False)))
    assert evaluate(untrained, bought)["ternary"]["one_off"] == 0


def test_the_warm_fallback_stands_all_year_to_the_cent(make_case) -> None:
    """One more server runs idle, at full precision's 0.4 kW: 0.4 kW x 1.1 (the slope) x 8,760 h x
    0.20 = 770.88 a year. Of the four that are held it is one, so nothing more is bought; where the
    freed ones are sold it is kept for 10,000 x 0.301921 = 3,019.21 a year."""
    kept = what_if(make_case(fleet=FleetRules(warm_fallback_servers=1)), draws=10)
    assert cents(kept.figure("ternary", "fallback").value) == 770.88
    rules = FleetRules(warm_fallback_servers=1, freed_is_sold=True)
    sold = what_if(make_case(fleet=rules), draws=10)
    assert cents(sold.figure("ternary", "fallback").value) == cents(770.88 + 3_019.21)
    assert not [f for f in what_if(make_case(), draws=10).figures if f.name == "fallback"]


def test_what_the_change_pays_to_the_cent(make_case) -> None:
    """1,000 now, 2,698.08 after each of four years: 2,698.08 / 0.301921 - 1,000 = 7,936.38, back
    after 1,000 / 2,698.08 = 0.37 years. Sold, the two freed servers bring 0.2 x 20,000 = 4,000 at
    once and cost nothing any more: 11,936.38, paid back at once; 6,038.42 less capital a year."""
    ternary = evaluate(make_case())["ternary"]
    assert cents(ternary["npv"]) == 7_936.38
    assert cents(ternary["payback_y"]) == 0.37
    sold = evaluate(make_case(fleet=FleetRules(freed_is_sold=True)))["ternary"]
    assert (cents(sold["npv"]), sold["payback_y"]) == (11_936.38, 0)
    assert cents(sold["capital"]) == 6_038.42


def test_growth_buys_servers_later_where_freed_ones_are_kept(make_case) -> None:
    """The load doubles after a year: full precision needs eight servers, four more for 40,000 at
    the end of the first year, 37,037.04 now; ternary grows into the four it holds."""
    case = make_case(horizon_y=2)
    numbers = case.numbers | {"growth": Quantity(1.0, "assumed")}
    grown = evaluate(replace(case, numbers=numbers))["ternary"]
    energy = 2_698.08 / 1.08 + 2 * 2_698.08 / 1.08**2
    assert cents(grown["npv"]) == pytest.approx(37_037.04 + energy - 1_000, abs=0.02)


def test_spares_fallback_and_items_are_counted_by_what_they_are_of(make_case) -> None:
    """Eight accelerators in one chassis: 4 and 2 of them are one server each, with a spare two, and
    the warm fallback makes three of ternary's: nothing is freed. Two servers with 16 accelerators
    at 100, one rack at 10 a year, a fleet item at 7 a year."""
    items = (
        Item(name="gpu", what="accelerator", per="accelerator", price=100.0, life_y=1.0),
        Item(name="rack", what="space", per="rack", per_year=10.0),
        Item(name="staff", what="staff", per="fleet", per_year=7.0),
    )
    rules = FleetRules(per_server=8, spare_servers=1, warm_fallback_servers=1)
    case = make_case(fleet=rules, items=items)
    numbers = case.numbers | {f"price.{i.name}": Quantity(i.price, "assumed") for i in items}
    numbers |= {f"per_year.{i.name}": Quantity(i.per_year, "assumed") for i in items}
    full, ternary = evaluate(replace(case, numbers=numbers)).values()
    assert (full["accelerators"], full["servers"]) == (4, 2)
    assert (ternary["accelerators"], ternary["servers"], ternary["servers_freed"]) == (2, 3, -1)
    assert cents(full["capital"]) == 16 * 100 * 1.08
    assert cents(full["running"]) == 17


def test_today_s_accelerators_scale_by_what_a_request_takes(make_case) -> None:
    """Eight of today x 1 s / 2 s = 4; with a quarter more requests 5; at 0.4 of a machine's time
    instead of 0.5 again a quarter more."""
    case = make_case(accelerators=8)
    assert evaluate(case)["ternary"]["accelerators_fluid"] == 4
    more = evaluate(case, {"requests_per_day": 108_000.0})
    assert more["ternary"]["accelerators_fluid"] == pytest.approx(5)
    assert evaluate(case, {"utilisation": 0.4})["ternary"]["accelerators_fluid"] == 5


def test_a_simulated_fleet_is_what_carries_the_peak(make_case, make_simulated) -> None:
    """1 request a second at 0.25 a replica: 4; at 0.5 two carry 2 x 0.8 x 0.5 = 0.8 a second,
    three carry 3 x 0.5 = 1.5: 2 + 0.2 / 0.7. A request takes 0.5 / 0.25 = 2 s and 1 s of a machine
    as before, so full precision's energy is the same."""
    full, ternary = evaluate(make_simulated()).values()
    assert full["accelerators_fluid"] == pytest.approx(4)
    assert ternary["accelerators_fluid"] == pytest.approx(2 + 0.2 / 0.7)
    assert (full["accelerators"], ternary["accelerators"]) == (4, 3)
    before = evaluate(make_case())["full_precision"]
    assert full["energy_kwh"] == pytest.approx(before["energy_kwh"])
    # Beyond a cell it is the rate alone; a tenth of the requests fit one replica of either arm.
    many = evaluate(make_simulated(), {"requests_per_day": 864_000.0})
    assert many["ternary"]["accelerators_fluid"] == pytest.approx(20)
    few = evaluate(make_simulated(), {"requests_per_day": 8_640.0})
    assert few["full_precision"]["accelerators_fluid"] == pytest.approx(0.1 / 0.15)


def test_today_s_accelerators_carry_the_peak_and_an_arm_needs_what_carries_it(
    make_simulated,
) -> None:
    """Eight carry 8 x 0.25 = 2 a second; ternary 2 / 0.5 = 4 of its own, with a quarter more 5."""
    case = make_simulated(accelerators=8)
    assert evaluate(case)["full_precision"]["accelerators_fluid"] == pytest.approx(8)
    assert evaluate(case)["ternary"]["accelerators_fluid"] == pytest.approx(4)
    more = evaluate(case, {"requests_per_day": 108_000.0})
    assert more["ternary"]["accelerators_fluid"] == pytest.approx(5)
    result = what_if(case, draws=300)
    fluid = result.figure("ternary", "accelerators_fluid")
    assert (fluid.lo, fluid.hi) == (pytest.approx(3.83, abs=0.05), pytest.approx(4.17, abs=0.05))
    assert result.figure("full_precision", "accelerators_fluid").lo == pytest.approx(8)


def test_a_day_has_idle_hours(make_case) -> None:
    """Half a machine's time used: of full precision's 4 x 0.4 + 2 x 0.6 = 2.8 kW only 1.2 kW are
    work; counting busy hours alone, 2 kW, misses 0.8 kW."""
    full = evaluate(make_case())["full_precision"]
    assert full["energy_j_per_request"] == pytest.approx(2_800)


def test_a_figure_is_as_weak_as_its_weakest_number(make_case) -> None:
    assert weakest(["measured", "derived", "modelled"]) == "modelled"
    case = make_case()
    known = {
        name: replace(q, kind="modelled" if name == "pue" else "measured")
        for name, q in case.numbers.items()
    }
    result = what_if(replace(case, numbers=known), draws=10)
    assert result.figure("ternary", "accelerators").kind == "derived"
    energy = result.figure("ternary", "energy_kwh")
    assert (energy.kind, energy.made_of) == ("modelled", ("pue",))
    assert result.tornado == ()


@pytest.mark.parametrize("made_by", ["make_case", "make_simulated"])
@pytest.mark.parametrize("accelerators", [None, 8])
def test_every_number_that_moves_a_figure_is_among_those_it_is_made_of(
    request, made_by, accelerators
) -> None:
    """What the kind is made of is not asserted by hand: turn each number and see what moves."""
    made = request.getfixturevalue(made_by)
    case = made(fleet=FleetRules(warm_fallback_servers=1), accelerators=accelerators)
    numbers = case.numbers | {"growth": Quantity(0.3, "assumed")}
    case = replace(case, numbers=numbers | {"kwh.training": Quantity(500.0, "assumed")})
    before = evaluate(case)
    for name, number in case.numbers.items():
        # A value of 0 is turned as well; whole servers move by steps, so it is turned far.
        after = evaluate(case, {name: number.value * 1.9 if number.value else 0.5})
        for arm, figures in before.items():
            for figure, value in figures.items():
                if not np.isclose(value, after[arm][figure], equal_nan=True):
                    assert name in numbers_of(case, arm, figure), (name, arm, figure)


def test_intervals_come_from_what_was_measured_alone(make_case) -> None:
    result = what_if(make_case(), seed=1)
    fluid = result.figure("ternary", "accelerators_fluid")
    assert (fluid.lo, fluid.hi) == (pytest.approx(1.94, abs=0.01), pytest.approx(2.06, abs=0.01))
    no_interval = make_case(accelerators=None)
    exact = {n: replace(q, lo=None, hi=None) for n, q in no_interval.numbers.items()}
    alone = what_if(replace(no_interval, numbers=exact))
    assert {(f.lo, f.hi) for f in alone.figures} == {(None, None)}


def test_the_tornado_turns_each_assumption_alone_widest_first(make_case) -> None:
    """PUE lies 0.5 above the IT load, and a fifth of that is 0.1: at a slope of 1.1 the saving does
    not move with PUE; with the slope it does, 1.4 kW x 0.02 x 8,760 h x 0.20 = 49.06 each way."""
    turns = {turn.number: turn for turn in what_if(make_case()).tornado}
    assert "pue" not in turns and "request_s.ternary" not in turns
    assert cents(turns["pue_slope"].swing) == cents(2 * 49.056)
    assert cents(turns["once.training"].swing) == cents(400 * 0.301920804)
    swings = [turn.swing for turn in what_if(make_case()).tornado]
    assert swings == sorted(swings, reverse=True)


def test_a_change_by_name_and_none_that_is_unknown(make_case) -> None:
    case = make_case()
    dearer = what_if(case, {"price_scale": 2.0}, draws=10)
    assert cents(dearer.figure("full_precision", "energy").value) == 2 * 7_358.40
    with pytest.raises(KeyError, match="tarif"):
        what_if(case, {"tarif": 2.0})


def test_without_a_power_the_fleet_is_all_there_is(make_case) -> None:
    result = what_if(make_case(no_power="no meter"), draws=10)
    assert {f.name for f in result.figures} == {
        "accelerators_fluid", "accelerators", "servers", "servers_held", "servers_freed",
    }  # fmt: skip


UP = ("pue", "price_scale", "requests_per_day", "power_w.ternary", "request_s.ternary",
      "price.server", "discount_rate", "idle_share.ternary")  # fmt: skip


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(UP), factor=st.floats(1.0, 2.0), more=st.floats(1.0, 1.4))
def test_a_year_never_costs_less_when_something_costs_or_takes_more(
    make_case, name, factor, more
) -> None:
    case = make_case()
    value = case.numbers[name].value
    years = [
        evaluate(case, {name: value * by})["ternary"]["year"] for by in (factor, factor * more)
    ]
    assert years[1] >= years[0] - 1e-9


@pytest.mark.parametrize("made_by", ["make_case", "make_simulated"])
def test_all_of_it_takes_well_under_100_ms(request, made_by) -> None:
    case = request.getfixturevalue(made_by)()
    what_if(case)
    best = min(_seconds(case) for _ in range(5))
    assert best < 0.1


def _seconds(case) -> float:
    began = time.perf_counter()
    what_if(case, {"pue": 1.3}, draws=1000)
    return time.perf_counter() - began
