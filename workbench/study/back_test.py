"""How often the forecast is right: ``make forecast``.

The law of :mod:`workbench.measure.learning_curve` is tried in two ways. On curves that were trained
(rows ``curve`` of ``docs/results/forecast.jsonl``; with a folder of studies, its arms are added):
fitted on the first half, do the points of the second half lie in the 95 % band? And on simulated
curves whose truth is known: does the interval of the tokens until a gap hold them, "never"
included? The simulated are of the law itself (power laws in all tokens) and of others that it is
not (in the tokens since the threshold, sums of two power laws), at a constant rate and with a
cosine whose way down moves the gap as well.

Rows ``forecast_covered`` (``of``, ``value``, ``n``, ``unit`` points or curves) go to the same file.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.json_lines import read_rows
from workbench.measure.learning_curve import FARTHEST, Curve, fit
from workbench.paths import PROJECT
from workbench.records.stage_record import StageRecord
from workbench.report.forecast import ENDS, back_test
from workbench.report.forecast_curve import gap_curve
from workbench.wording.counts import number_of

RESULTS = PROJECT / "docs" / "results" / "forecast.jsonl"
SIMULATED = 100
STEPS, POINTS = 400, 24
TriedRow = dict[str, Any]


def trained_curves(rows: list[TriedRow]) -> list[tuple[TriedRow, Curve]]:
    """Rows of name ``curve``, each with its curve."""
    fields = ("tokens", "gap", "weight", "annealed")
    return [
        (row, Curve(*(np.array(row[f]) for f in fields), row["threshold_tokens"]))
        for row in rows
        if row["name"] == "curve"
    ]


def curves_of_studies(root: Path, **said: str) -> Iterator[TriedRow]:
    """Every ternary arm of the studies below ``root`` that has its full-precision twin there: the
    same batches in the same order at the same rates. said: added to each row."""
    losses = [
        (record.key, record.table("loss"))
        for folder in sorted((root / "arms").glob("*"))
        if (record := StageRecord.load(folder))
    ]
    plain = [loss for _, loss in losses if set(loss["phase"]) == {"full_precision"}]
    for key, loss in losses:
        schedule = _schedule(loss)
        twin = next(
            (p for p in plain if _schedule(p) == schedule and loss["batch"].equals(p["batch"])),
            None,
        )
        if twin is None or set(loss["phase"]) == {"full_precision"}:
            continue
        both = pd.concat([twin.assign(arm="full_precision"), loss.assign(arm="ternary")])
        # nats a token to bits: the curve's shape does not depend on the bytes of a token
        made = gap_curve(
            both, pd.DataFrame([{"step": 0, "loss": math.log(2), "bits_per_byte": 1.0}])
        )
        if isinstance(made, str):
            continue
        row = {name: np.round(value, 6).tolist() for name, value in asdict(made[0]).items()}
        taught = "teacher_kl" in loss
        yield {"name": "curve", "arm": key[:12], "schedule": schedule, "taught": taught, **row,
               "unit": "bits/token", **said}  # fmt: skip


def covered(of: str, inside: int, n: int, unit: str) -> TriedRow:
    return {"name": "forecast_covered", "of": of, "value": round(inside / n, 4), "n": n,
            "unit": unit, "nominal": 0.95}  # fmt: skip


def tried_on_trained(curves: list[tuple[TriedRow, Curve]]) -> Iterator[TriedRow]:
    """A row a curve, then all of them together."""
    tests = [(row, back_test(curve)) for row, curve in curves]
    done = [(row, test) for row, test in tests if test]
    for row, test in done:
        taught = ", taught" if row["taught"] else ""
        of = f"second half, {row['arm']}, {row['schedule']}{taught}"
        yield covered(of, test.inside, test.points, "points")
    if done:
        inside, points = (sum(getattr(t, f) for _, t in done) for f in ("inside", "points"))
        yield covered(
            f"second half, all {number_of(len(done), 'trained curve')}", inside, points, "points"
        )


# Simulated curves


def _power(share: np.ndarray, exponent: float, start: float) -> np.ndarray:
    return ((share + start) / (1 + start)) ** -exponent


SHAPES: dict[str, tuple[float, Callable[[np.ndarray, float], np.ndarray]]] = {
    "in all tokens, threshold on from a tenth": (0.1, lambda x, b: _power(x, b, 0.0)),
    "in all tokens, threshold on from 0.6": (0.6, lambda x, b: _power(x, b, 0.0)),
    "in tokens since the threshold": (0.6, lambda x, b: _power((x - 0.6) / 0.4, b, 0.05)),
    "two power laws": (
        0.6,
        lambda x, b: (
            0.6 * _power((x - 0.6) / 0.4, b, 0.03) + 0.4 * _power((x - 0.6) / 0.4, b + 0.5, 0.03)
        ),
    ),
}
"""Share of the run after which the threshold is on, and the reducible part over that at the end."""


def simulated(shape: str, cosine: bool, runs: int = SIMULATED) -> Iterator[TriedRow]:
    """Second halves, and tokens until a gap that lies between a tenth of what is reducible and a
    fifth below the floor, of curves of one million tokens."""
    random = np.random.default_rng(len(shape))
    begun, reducible = SHAPES[shape]
    inside = points = held = 0
    for run in range(runs):
        floor, part, exponent = (random.uniform(*of) for of in ((0, 0.1), (0.02, 0.3), (0.15, 0.9)))
        share = np.linspace(begun, 1, STEPS + 1)[1:]
        way = (1 - np.cos(np.pi * share)) / 2 if cosine else np.zeros(STEPS)
        gap = floor + part * reducible(share, exponent) - random.uniform(-0.02, 0.05) * way
        gap += random.normal(0, 0.02, STEPS)
        parts = np.array_split(np.arange(STEPS), POINTS)
        curve = Curve(*(np.array([of[p].mean() for p in parts]) for of in (1e6 * share, gap)),
                      np.array([float(len(p)) for p in parts]),
                      np.array([way[p].mean() for p in parts]), 1e6 * begun)  # fmt: skip
        test = back_test(curve, run)
        inside, points = inside + test.inside, points + test.points
        fall = random.uniform(0.1, 1.2) * part
        # a stretched run: its shares stay, its tokens since the threshold grow alike
        times = np.geomspace(1, FARTHEST, 4000)
        at = begun + (1 - begun) * times if begun == 0.6 and "all" not in shape else times
        falls = part * (1 - reducible(at, exponent))
        truth = 1e6 * times[np.searchsorted(falls, fall)] if falls[-1] >= fall else np.inf
        lo, _, hi = np.quantile(fit(curve, draws=1500, seed=run).tokens_until(fall), ENDS,
                                method="inverted_cdf")  # fmt: skip
        held += lo <= 1.002 * truth and truth <= 1.002 * hi
    named = f"simulated {shape}, {'cosine' if cosine else 'constant rate'}"
    yield covered(f"second half, {named}", inside, points, "points")
    yield covered(f"tokens until a gap, {named}", held, runs, "curves")


def _schedule(loss: pd.DataFrame) -> str:
    ends_low = loss["lr"].iloc[-1] < 0.5 * loss["lr"].max()
    return "way down" if ends_low else "constant rate"


def main(arguments: list[str]) -> None:
    """arguments: a folder of studies and words for its curves, ``corpus=python``; or none."""
    rows = read_rows(RESULTS) if RESULTS.exists() else []
    kept = [row for row in rows if row["name"] == "curve"]
    if arguments:
        said = dict(each.split("=", 1) for each in arguments[1:])
        known = {row["arm"] for row in kept}
        found = curves_of_studies(Path(arguments[0]), **said)
        kept += [row for row in found if row["arm"] not in known]
    made = list(tried_on_trained(trained_curves(kept)))
    for shape in SHAPES:
        for cosine in (False, True):
            made += simulated(shape, cosine)
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in kept + made), encoding="utf-8")
    for row in made:
        print(f"{row['value']:.3f}  of {row['n']} {row['unit']}: {row['of']}")


if __name__ == "__main__":
    main(sys.argv[1:])
