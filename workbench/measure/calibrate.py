"""How often the intervals and gates are right, by simulation: ``make calibrate``.

Every method is run on data whose truth is known, in the situations of a pilot, through the same
functions as the pilot's own figures. Four things are counted over many runs:

- ``coverage``: intervals that hold the truth, among the runs in which one was given;
- ``false_go``: gates that pass although the truth lies just beyond the limit (at the limit,
  where that is most likely), among all runs;
- ``false_no_go``: gates that fail although the truth lies at the limit;
- ``power``: planted effects that are found.

Rows go to ``docs/results/calibration.jsonl`` (``name``, ``method``, ``situation``, ``n``,
``nominal``, ``value``, ``runs``, and ``given``: the share of runs with an interval), the table
into ``docs/measuring.md``. About twelve minutes of one core.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.measure.calibrate_studies import STUDIES
from workbench.measure.dependence import (
    quantile_over_blocks,
    quantile_over_time,
    rate_over_time,
    share_difference_over_blocks,
    share_over_blocks,
    share_over_time,
)
from workbench.measure.orders import balanced_orders
from workbench.measure.session import FEWEST_TO_STOP
from workbench.measure.statistics import (
    Estimate,
    bits_per_byte_difference,
    count,
    holm,
    mean,
    mean_ratio,
    quantile,
    share,
    smallest_visible_effect,
    visible_in,
)
from workbench.paths import PROJECT
from workbench.wording.counts import number_of

RESULTS = PROJECT / "docs" / "results" / "calibration.jsonl"
PAGE = PROJECT / "docs" / "measuring.md"
BEGIN, END = "<!-- calibration -->", "<!-- /calibration -->"
ONE_SIDE = 0.025
RARE = 0.05
"""In fewer runs with an interval there is no coverage; they still count as wrong go and no go."""
Generator = np.random.Generator


@dataclass(frozen=True)
class Row:
    """One figure of the calibration. nominal: what it should be at most (false alarms) or at
    least (coverage and power). given: share of the runs in which there was an interval."""

    name: str
    method: str
    situation: str
    n: int
    nominal: float
    value: float
    runs: int
    given: float

    @property
    def keeps(self) -> bool:
        """Whether it meets its bound, three standard errors of the simulation allowed."""
        slack = 3 * math.sqrt(self.nominal * (1 - self.nominal) / max(1, self.runs * self.given))
        if self.name.startswith("false"):
            return self.value <= self.nominal + slack
        return self.value >= self.nominal - slack


def judged(
    method: str,
    situation: str,
    n: int,
    truth: float,
    estimates: Iterable[Estimate],
    nominal: float = 0.92,
) -> list[Row]:
    """Coverage, and the gates ``at_most`` and ``at_least`` with their limit at the truth.

    A gate at the truth passes wrongly when the interval lies on one side of it, and fails wrongly
    when it lies on the other; for ``at_least`` the two change places, so the larger counts.
    """
    made = list(estimates)
    given = [e for e in made if e.lo is not None and e.hi is not None]
    # A limit exactly at the truth is kept by an interval that ends there.
    below = sum(e.hi < truth for e in given if e.hi is not None) / len(made)
    above = sum(e.lo > truth for e in given if e.lo is not None) / len(made)
    share_given, runs = len(given) / len(made), len(made)
    wrong = max(below, above)
    rows = [
        Row(name, method, situation, n, ONE_SIDE, value, runs, share_given)
        for name, value in (("false_go", wrong), ("false_no_go", wrong))
    ]
    if share_given >= RARE:  # a few calm runs of a busy queue say nothing of the others
        held = 1.0 - (below + above) / share_given
        rows.append(Row("coverage", method, situation, n, nominal, held, runs, share_given))
    return rows


# Documents


def documents(runs: int) -> Iterator[Row]:
    """Paired gaps in bits a byte, of light, skewed and heavy tails."""
    shapes: dict[str, tuple[Callable[[Generator, int], np.ndarray], float]] = {
        "normal": (lambda r, n: r.normal(0.1, 0.1, n), 0.1),
        "exponential": (lambda r, n: r.exponential(0.1, n), 0.1),
        "lognormal, sigma 1": (lambda r, n: 0.1 * r.lognormal(-0.5, 1, n), 0.1),
        "Student's t, 3 degrees": (lambda r, n: 0.1 + 0.05 * r.standard_t(3, n), 0.1),
    }
    method = "documents, studentized bootstrap"
    for name, (draw, truth) in shapes.items():
        for n in (8, 32, 64, 128, 256):
            random = np.random.default_rng(n)
            made = (_gap(random, draw(random, n)) for _ in range(runs if n >= 64 else 20))
            yield from judged(method, name, n, truth, made)
    for n in (64, 128, 256):
        random = np.random.default_rng(n)
        found = [_gap(random, random.normal(0.01, 0.02, n)).lo for _ in range(runs)]
        value = float(np.mean([lo is not None and lo > 0 for lo in found]))
        situation = "0.01 bit a byte, 0.02 from document to document"
        yield Row("power", method, situation, n, 0.8, value, runs, 1.0)


def studies(runs: int) -> Iterator[Row]:
    """Functions of several arms' losses on the same documents, with heavy tails."""
    for situation in STUDIES:
        for n in (64, 100, 256):
            made = situation.estimates(n, runs)
            method = "studies, studentized bootstrap"
            yield from judged(method, situation.name, n, situation.truth, made)


def _gap(random: Generator, gaps: np.ndarray) -> Estimate:
    size = random.integers(400, 2400, len(gaps)).astype(float)
    easy = random.gamma(4, 0.3, len(gaps)) * size
    return bits_per_byte_difference(
        easy, easy + math.log(2) * gaps * size, size, resamples=1000, seed=int(size[0])
    )


# Blocks


def blocks(runs: int) -> Iterator[Row]:
    """Ratios and means over blocks that take turns: drift, disturbances, early stopping."""
    for n in (6, 8, 12, 24):
        random = np.random.default_rng(n)
        noise = random.normal(0, 0.03, (runs, 2, n)) + random.normal(0, 0.2, (runs, 1, n))
        made = (mean_ratio(1.3 * np.exp(a), np.exp(b)) for a, b in noise)
        yield from judged("blocks, t of log ratios", "drift of 20 %", n, 1.3, made)
        burst = noise + 0.7 * (random.random((runs, 2, n)) < 0.1)
        made = (mean_ratio(1.3 * np.exp(a), np.exp(b)) for a, b in burst)
        situation = "one turn in ten takes twice as long"
        yield from judged("blocks, t of log ratios", situation, n, 1.3, made)
        skewed = random.gamma(16, 1 / 16, (runs, n))
        made = (mean(values) for values in skewed)
        yield from judged("blocks, t on a log scale", "gamma, CV 0.25", n, 1.0, made)
    for deviation in (0.03, 0.06, 0.12):
        made = [_stopped(np.random.default_rng(i), deviation) for i in range(runs // 4)]
        n = round(float(np.mean([e.n for e in made])))
        situation = f"stopped at 5 %, spread {deviation:.0%} a block"
        yield from judged("blocks, stopped by precision", situation, n, 1.0, made)
    for n in (12, 16, 32):
        random = np.random.default_rng(n)
        noise = random.normal(0, 0.02, (runs, 2, n))
        made = [mean_ratio(1.03 * np.exp(a), np.exp(b)) for a, b in noise]
        value = float(np.mean([e.lo is not None and e.lo > 1 for e in made]))
        yield Row("power", "blocks, t of log ratios", "3 %, 2 % a turn", n, 0.8, value, runs, 1.0)
    yield from _visible(runs)
    yield from _many_arms(runs // 4)
    yield from _carried_over(runs // 4)


def _stopped(random: Generator, deviation: float) -> Estimate:
    """Blocks until the interval is 5 % wide on its upper side, 8 to 80 of them."""
    logs = random.normal(0, deviation, 80)
    for n in range(FEWEST_TO_STOP, len(logs) + 1):
        found = mean_ratio(np.exp(logs[:n]), np.ones(n), stopped=True)
        if found.hi is not None and found.value is not None and found.hi <= 1.05 * found.value:
            return found
    return found


def _visible(runs: int) -> Iterator[Row]:
    """An effect as large as the A/A comparison says: found in 80 % of other sessions."""
    for n in (8, 16):
        random = np.random.default_rng(n)
        noise = random.normal(0, 0.02, (runs, 4, n))
        found = []
        for a, b, c, d in noise:
            effect = smallest_visible_effect(np.exp(a), np.exp(b)).value or 0.0
            ratio = mean_ratio((1 + abs(effect)) * np.exp(c), np.exp(d))
            found.append(ratio.lo is not None and ratio.lo > 1)
        situation = "its own smallest visible effect"
        value = float(np.mean(found))
        yield Row("power", "A/A comparison", situation, n, 0.8, value, runs, 1.0)
        found = []
        for a, b, c, d in noise:
            effect = visible_in(mean_ratio(1.3 * np.exp(a), np.exp(b))).value or 0.0
            ratio = mean_ratio((1 + effect) * np.exp(c), np.exp(d))
            found.append(ratio.lo is not None and ratio.lo > 1)
        value = float(np.mean(found))
        yield Row("power", "scatter of a ratio", situation, n, 0.8, value, runs, 1.0)


def _many_arms(runs: int) -> Iterator[Row]:
    random, false = np.random.default_rng(15), []
    for arms in random.lognormal(0, 0.02, (runs, 16, 8)):
        p_values = [mean_ratio(arms[0], arm).p_value or 1.0 for arm in arms[1:]]
        false.append(any(holm(p_values)))
    value = float(np.mean(false))
    situation = "15 comparisons, all arms equal: any called different"
    yield Row("false_go", "Holm over ratios", situation, 8, 0.05, value, runs, 1.0)


def _carried_over(runs: int) -> Iterator[Row]:
    """An arm 5 % slower in the request right after full precision; a true effect of 3 %.

    A turn begins with an untimed request of its own arm, which is the one that suffers.
    """
    arms = ["full_precision", "ternary", "int8", "again"]
    random, made = np.random.default_rng(5), []
    for run in range(runs):
        orders = balanced_orders(arms, run)
        seconds = np.ones((12, len(arms)))
        for block in range(12):
            last = ""
            for arm in next(orders):
                requests = random.lognormal(0, 0.02, 3) * (0.97 if arm == "ternary" else 1.0)
                if arm == "ternary" and last == "full_precision":
                    requests[0] *= 1.05
                seconds[block, arms.index(arm)] = requests[1:].mean()
                last = arm
        made.append(mean_ratio(seconds[:, 0], seconds[:, 1]))
    situation = "5 % slower right after full precision, effect 3 %"
    yield from judged("blocks, Williams orders", situation, 12, 1 / 0.97, made)


# Requests


def counts(runs: int) -> Iterator[Row]:
    """Lost requests, shares and quantiles of requests that are independent."""
    for n in (40, 400):
        for p in (0.01, 0.1):
            random = np.random.default_rng(n)
            seen = random.binomial(n, p, runs)
            made = [count(int(k), n) for k in seen]
            yield from judged("counts, Clopper-Pearson", f"each lost at {p:g}", n, n * p, made)
            met = [share(int(n - k), n) for k in seen]
            yield from judged("shares, Clopper-Pearson", f"met at {1 - p:g}", n, 1 - p, met)
    for q, n in ((0.5, 40), (0.95, 120), (0.99, 120), (0.99, 400)):
        random = np.random.default_rng(n)
        made = [quantile(random.lognormal(0, 1, n), q) for _ in range(runs)]
        truth = math.exp(_normal_quantile(q))
        yield from judged("quantiles, order statistics", f"p{100 * q:g}, lognormal", n, truth, made)


def _normal_quantile(q: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(q)


def latencies(
    random: Generator, runs: int, n: int, load: float, cv: float, warm: int = 0
) -> np.ndarray:
    """Latencies [runs, n] of one server, mean service 1; gaps with CV 1, or bursty ones (two
    exponential phases with balanced means)."""
    shape = (runs, n + warm)
    if cv == 1:
        gaps = random.exponential(1 / load, shape)
    else:
        often = 0.5 * (1 + math.sqrt((cv**2 - 1) / (cv**2 + 1)))
        short = random.random(shape) < often
        means = np.where(short, 1 / (2 * often), 1 / (2 * (1 - often))) / load
        gaps = random.exponential(1.0, shape) * means
    service, waiting = random.exponential(1.0, shape), np.zeros(runs)
    found = np.empty(shape)
    for i in range(n + warm):
        if i:
            waiting = np.maximum(waiting + service[:, i - 1] - gaps[:, i], 0.0)
        found[:, i] = waiting + service[:, i]
    return found[:, warm:]


QUEUES = ((0.5, 1), (0.5, 2), (0.7, 1), (0.7, 2), (0.9, 1), (0.9, 2))


def queues(runs: int) -> Iterator[Row]:
    """Tails, shares and medians of a replay in which requests wait for one another."""
    for load, cv in QUEUES:
        situation = f"queue at {load:g}, gap CV {cv}"
        long = latencies(np.random.default_rng(1), 300, 6000, load, cv, 2000)
        for q in (0.5, 0.95):
            truth = float(np.quantile(long, q))
            for n, fewer in ((120, runs), (400, runs), (1500, runs), (6000, runs // 4)):
                found = latencies(np.random.default_rng(n), fewer, n, load, cv, 500)
                made = [quantile_over_time(each, q) for each in found]
                yield from judged(f"p{100 * q:g} over time", situation, n, truth, made)
                if q == 0.95:
                    met = [share_over_time(each <= truth, each) for each in found]
                    yield from judged("shares over time", situation, n, q, met)
        for size, number in ((40, 8), (40, 16), (100, 24)):
            from_empty = latencies(np.random.default_rng(2), 3000, size, load, cv)
            labels = np.repeat(np.arange(number), size)
            found = latencies(np.random.default_rng(3), runs * number, size, load, cv)
            found = found.reshape(runs, number * size)
            of = f"{situation}, {number_of(number, 'block')} of {size}"
            for q in (0.5, 0.95):
                truth = float(np.quantile(from_empty, q))
                made = [quantile_over_blocks(each, labels, q) for each in found]
                yield from judged(f"p{100 * q:g} over blocks", of, size * number, truth, made)
            met = [share_over_blocks(each <= truth, labels, each) for each in found]
            yield from judged("shares over blocks", of, size * number, 0.95, met)
            yield from _slower_arm(runs, load, cv, size, number, truth)


def _slower_arm(
    runs: int, load: float, cv: float, size: int, number: int, limit: float
) -> Iterator[Row]:
    """Targets met by an arm that takes 10 % longer for the same requests at the same times."""

    def both(random: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        one = latencies(np.random.default_rng(random), count, size, load, cv)
        return one, 1.1 * latencies(np.random.default_rng(random), count, size, 1.1 * load, cv)

    one, two = both(4, 20_000)
    truth = float((two <= limit).mean() - (one <= limit).mean())
    labels = np.repeat(np.arange(number), size)
    pairs = zip(*(each.reshape(runs, -1) for each in both(5, runs * number)), strict=True)
    made = [share_difference_over_blocks(a <= limit, b <= limit, labels, a, b) for a, b in pairs]
    situation = (
        f"queue at {load:g}, gap CV {cv}, 10 % slower, {number_of(number, 'block')} of {size}"
    )
    yield from judged("differences of shares over blocks", situation, size * number, truth, made)


def rates(runs: int) -> Iterator[Row]:
    """Arrivals that switch between a calm and a busy rate every few windows."""
    for stay in (1, 5, 10):
        for n in (200, 400, 1600):
            random = np.random.default_rng(n)
            busy = np.cumsum(random.random((runs, n)) < 1 / (2 * stay), axis=1) % 2
            busy ^= random.random((runs, 1)) < 0.5
            made = [rate_over_time(each, 1.0) for each in random.poisson(2 + 8 * busy)]
            situation = f"bursts of {number_of(2 * stay, 'window')}"
            yield from judged("rates over time", situation, n, 6.0, made)


PARTS = {documents: 1000, studies: 200, blocks: 4000, counts: 2000, queues: 600, rates: 1000}
"""Runs of each part; what is cheap is run more often."""


def calibrate(share_of_runs: float = 1.0) -> list[Row]:
    """All rows; ``share_of_runs`` of the runs for a quicker and rougher look."""
    return [row for part, runs in PARTS.items() for row in part(round(share_of_runs * runs))]


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, one line for each method, situation and n."""
    together: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        together.setdefault((row.method, row.situation, row.n), {})[row.name] = row
    lines = [
        "| method | situation | n | interval given | coverage | wrong go, no go | power |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for (method, situation, n), found in together.items():

        def cell(name: str, found: dict[str, Row] = found) -> str:
            return f"{100 * found[name].value:.1f} %" if name in found else ""

        given = next(iter(found.values())).given
        lines.append(
            f"| {method} | {situation} | {n} | {100 * given:.0f} % | {cell('coverage')} | "
            f"{cell('false_go')} | {cell('power')} |"
        )
    return "\n".join(lines)


def main() -> None:
    began = time.monotonic()
    rows = [Row(**{k: _rounded(v) for k, v in asdict(row).items()}) for row in calibrate()]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    page = Path(PAGE).read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    page = f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}"
    Path(PAGE).write_text(page, encoding="utf-8")
    missed = [row for row in rows if not row.keeps]
    for row in missed:
        print(json.dumps(asdict(row)), file=sys.stderr)
    took_s = time.monotonic() - began
    print(
        f"{number_of(len(rows), 'figure')} in {took_s:.0f} s, {len(missed)} beyond their bounds: "
        f"{RESULTS}"
    )
    sys.exit(bool(missed))


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
