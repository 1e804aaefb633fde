"""How long the whole case takes: ``python -m workbench.bench.what_if``, a part of ``make energy``.

The case of ``pilots/provider_8x.yaml`` with made-up measurements of four arms: every figure, the
tornado and the Monte Carlo of 1,000 draws; and what a slider of notebook 06 does, its figure
included. The rows named ``what_if_ms`` in the results are
written anew, the others kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from workbench.economics.case import Case, CaseArm
from workbench.economics.quantity import Quantity
from workbench.economics.tariff import year_prices
from workbench.economics.what_if import what_if
from workbench.economics.year import load_shape, year_sums
from workbench.figures.what_if import DRAWS, answered
from workbench.machine.cpu import cpu
from workbench.measure.played import RESULTS
from workbench.paths import PROJECT
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.cost import Cost
from workbench.report.one_off import one_offs

NAME = "what_if_ms"
REPEATS = 50
ARMS = {"full_precision": (0.9, 700.0), "ternary": (0.6, 650.0), "post_training": (0.6, 650.0),
        "int8": (0.7, 680.0), "int4": (0.62, 660.0)}  # fmt: skip
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
    once = one_offs({}, cost)
    numbers |= once.numbers
    for arm, (seconds, watts) in ARMS.items():
        for name, value in ((f"request_s.{arm}", seconds), (f"power_w.{arm}", watts)):
            numbers[name] = Quantity(value, "measured", "", "", 0.97 * value, 1.03 * value)
        numbers[f"idle_share.{arm}"] = Quantity(cost.fleet.idle_share, "assumed")
    return Case(
        tuple(CaseArm(arm, 0.5) for arm in ARMS), numbers, sums, cost.fleet, tuple(cost.items),
        once.items, cost.currency, cost.horizon_y, 1000.0, 150.0, cost.accelerators,
    )  # fmt: skip


def timed(name: str, of: str, draws: int, ask: Callable[[dict[str, float]], object]) -> dict:
    """A row: p20, p50 and p80 of ``ask`` with another PUE each time."""
    ask({})
    times = []
    cpu_began = time.process_time()
    for repeat in range(REPEATS):
        began = time.perf_counter()
        ask({"pue": 1.2 + 0.01 * repeat})
        times.append(1e3 * (time.perf_counter() - began))
    cpu_ms = 1e3 * (time.process_time() - cpu_began) / REPEATS
    low, middle, high = (round(float(t), 2) for t in np.quantile(times, [0.2, 0.5, 0.8]))
    return {
        "name": name, "of": of, "value": middle, "lo": low, "hi": high, "unit": "ms",
        "cpu_ms": round(cpu_ms, 2), "runs": REPEATS, "draws": draws, "arms": len(ARMS),
        "how": "p50, p20 and p80", "machine": cpu().model,
    }  # fmt: skip


def main() -> None:
    case = sample_case(resolve(PROJECT / "pilots" / "provider_8x.yaml").pilot.report.cost)
    rows = [
        timed(NAME, "all figures, tornado and Monte Carlo of the case of provider_8x", 1000,
              lambda changes: what_if(case, changes, draws=1000)),
        timed(NAME, "a slider of notebook 06 for it: what_if, the figure and its JSON", DRAWS,
              lambda changes: answered(case, changes).to_json()),
    ]  # fmt: skip
    kept = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    kept = [line for line in kept if json.loads(line)["name"] != NAME]
    lines = [*kept, *map(json.dumps, rows)]
    RESULTS.write_text("".join(f"{line}\n" for line in lines))
    print(*map(json.dumps, rows), sep="\n")


if __name__ == "__main__":
    main()
