"""How long the whole case takes: ``python -m workbench.bench.what_if``, a part of ``make energy``.

The case of ``pilots/provider_8x.yaml`` with measured numbers in their place: every figure, the
tornado and the Monte Carlo of 1,000 draws. The rows named ``what_if_ms`` in the results are
written anew, the others kept.
"""

from __future__ import annotations

import json
import time

import numpy as np

from workbench.economics.case import Case, CaseArm
from workbench.economics.quantity import Quantity
from workbench.economics.tariff import year_prices
from workbench.economics.what_if import what_if
from workbench.economics.year import load_shape, year_sums
from workbench.machine.cpu import cpu
from workbench.measure.played import RESULTS
from workbench.paths import PROJECT
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.cost import Cost

NAME = "what_if_ms"
REPEATS = 50
ARMS = {"full_precision": (0.9, 700.0), "ternary": (0.6, 650.0)}
"""Seconds of a machine for a request, and watts."""


def sample_case(cost: Cost) -> Case:
    """The pilot's prices with made-up measurements: for a time, not for a figure."""
    prices = year_prices(cost.tariff, cost.tariff_per_kwh)
    sums = year_sums(prices, load_shape(cost.hours, None), None, cost.tariff.demand_per_kw_month)
    declared = {
        "requests_per_day": cost.requests_per_day, "growth": 0.2, "price_scale": 1.0,
        "pue": cost.pue, "pue_slope": 1.0, "utilisation": cost.fleet.utilisation,
        "peak_over_mean": 1.5, "discount_rate": cost.discount_rate,
        "resale_share": cost.fleet.resale_share,
    }  # fmt: skip
    numbers = {name: Quantity(value, "assumed") for name, value in declared.items()}
    for item in cost.items:
        numbers[f"price.{item.name}"] = Quantity(item.price, item.kind)
        numbers[f"per_year.{item.name}"] = Quantity(item.per_year, item.kind)
    for once in cost.one_off:
        total = once.price + once.hours * once.per_hour
        numbers[f"once.{once.name}"] = Quantity(total, once.kind)
        numbers[f"kwh.{once.name}"] = Quantity(once.kwh, once.kind)
    for arm, (seconds, watts) in ARMS.items():
        for name, value in ((f"request_s.{arm}", seconds), (f"power_w.{arm}", watts)):
            numbers[name] = Quantity(value, "measured", "", "", 0.97 * value, 1.03 * value)
        numbers[f"idle_share.{arm}"] = Quantity(cost.fleet.idle_share, "assumed")
    return Case(
        tuple(CaseArm(arm, 0.5) for arm in ARMS), numbers, sums, cost.fleet, tuple(cost.items),
        tuple(cost.one_off), cost.currency, cost.horizon_y, 1000.0, 150.0, cost.accelerators,
    )  # fmt: skip


def main() -> None:
    case = sample_case(resolve(PROJECT / "pilots" / "provider_8x.yaml").pilot.report.cost)
    what_if(case)
    times = []
    cpu_began = time.process_time()
    for repeat in range(REPEATS):
        began = time.perf_counter()
        what_if(case, {"pue": 1.2 + 0.01 * repeat}, draws=1000)
        times.append(1e3 * (time.perf_counter() - began))
    cpu_ms = 1e3 * (time.process_time() - cpu_began) / REPEATS
    low, middle, high = np.quantile(times, [0.2, 0.5, 0.8])
    row = {
        "name": NAME,
        "of": "the case of provider_8x",
        "value": round(float(middle), 2),
        "lo": round(float(low), 2),
        "hi": round(float(high), 2),
        "unit": "ms",
        "cpu_ms": round(cpu_ms, 2),
        "runs": REPEATS,
        "draws": 1000,
        "numbers": len(case.numbers),
        "how": "p50, p20 and p80",
        "machine": cpu().model,
    }
    kept = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    kept = [line for line in kept if json.loads(line)["name"] != NAME]
    RESULTS.write_text("".join(f"{line}\n" for line in [*kept, json.dumps(row)]))
    print(json.dumps(row))


if __name__ == "__main__":
    main()
