"""How much training the quality gate still needs: tokens, hours, energy and money, modelled.

From the run's own curve (:mod:`workbench.report.forecast_curve`) and its law
(:mod:`workbench.measure.learning_curve`): how many tokens a training of the same recipe, its
schedule stretched, takes until the judged gap has fallen so far that the gate holds with its
whole interval. The middle of a schedule is not the end of a shorter one, so the fall counts from
this run's end. "Does not get there" is an outcome like any other, with its probability.

Each run also tests the law on itself: fitted on the first half of its curve, are the points of the
second half inside their 95 % band?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.measure.learning_curve import FARTHEST, FEWEST_POINTS, Curve, CurveDraws, fit
from workbench.pilot.sections.forecast import ForecastTerms
from workbench.pilot.sections.report import Report
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.cost import price_of
from workbench.report.forecast_curve import gap_curve
from workbench.report.training_gain import GAP, TERNARY, quality_limit
from workbench.wording.counts import number_of
from workbench.wording.numbers import duration, number, rounded
from workbench.wording.text import Texts

UNITS = {"forecast_tokens": "tokens", "forecast_hours": "h", "forecast_kwh": "kWh"}
COST, COVERED = "forecast_cost", "forecast_covered"
ENDS = (0.025, 0.5, 0.975)
TOO_SHORT = (
    "the curve is too short to be fitted by its first half and tested on the second; more steps, "
    "also smaller ones, make it longer"
)
HELD_SHARE = 0.5
"""Of the second half's points inside the 95 % band, at least; fewer, and the law is another one.
Of the trained curves of docs/studies.md none has fewer than 11 of 12."""
ForecastOutcome = Literal["holds", "reaches", "open", "never", "unknown"]


@dataclass(frozen=True)
class BackTest:
    """inside: of ``points`` of the second half, in the band of a fit to the first."""

    inside: int
    points: int


@dataclass(frozen=True)
class TrainingForecast:
    """tokens: (lo, middle, hi), inf where that end never gets there. reaches: share of the draws
    that do. trained: tokens of this run. fall: bits a byte that the judged gap is short of."""

    outcome: ForecastOutcome
    reason: str = ""
    tokens: tuple[float, float, float] | None = None
    reaches: float = 0.0
    trained: float = 0.0
    fall: float = 0.0
    curve: Curve | None = None
    draws: CurveDraws | None = None
    back_test: BackTest | None = None
    how: str = ""


def forecast(
    records: Mapping[str, StageRecord], settings: Report, seed: int = 0
) -> TrainingForecast | None:
    """None where nothing was trained, or no gate is about the quality of the ternary arm."""
    trained, measured = records.get("train_qat"), records.get("measure_ab")
    limit = quality_limit(settings.gates)
    if trained is None or "ready_ternary" in trained.facts or limit is None:
        return None
    made = _curve(trained)
    if isinstance(made, str):
        return TrainingForecast("unknown", made)
    curve, how = made
    draws, tested = fit(curve, seed=seed), back_test(curve, seed)
    tokens = trained.metric("training_tokens")
    known: dict[str, Any] = {
        "trained": tokens.value if tokens and tokens.value else float(curve.tokens[-1]),
        "curve": curve, "draws": draws, "back_test": tested, "how": how,
    }  # fmt: skip
    gaps = [
        m for m in (measured.metrics if measured else ())
        if m.matches(GAP, {"arm": TERNARY, "source": "trained"}) and m.value is not None
    ]  # fmt: skip
    if not gaps:
        return TrainingForecast("unknown", "the gap of the trained model was not judged", **known)
    # The gate must hold against each of them, the checkpoint as it came too.
    gap = max(gaps, key=_upper_end)
    fall = _upper_end(gap) - limit
    if fall <= 0:
        held = "the gate holds after the tokens of this run"
        if gap.hi is None:
            held = "the gap is within the margin; the gate lacks an interval, not training"
        return TrainingForecast("holds", held, fall=fall, **known)
    if tested is None:  # a law that nothing has tested is no ground for a decision
        return TrainingForecast("unknown", TOO_SHORT, fall=fall, **known)
    if tested.inside < HELD_SHARE * tested.points:
        return TrainingForecast("unknown", _why_failed(tested), fall=fall, **known)
    needed = draws.tokens_until(fall) * (known["trained"] / curve.tokens[-1])
    ends = np.quantile(needed, ENDS, method="inverted_cdf")
    reaches = float(np.isfinite(needed).mean())
    outcome: ForecastOutcome = (
        "never" if np.isinf(ends[1]) else "open" if np.isinf(ends[2]) else "reaches"
    )
    lo, middle, hi = map(float, ends)
    return TrainingForecast(
        outcome, _why_never(reaches) if outcome == "never" else "", (lo, middle, hi), reaches,
        fall=fall, **known,
    )  # fmt: skip


def _upper_end(gap: Metric) -> float:
    """What decides; the value where there are too few documents for an interval."""
    assert gap.value is not None
    return gap.value if gap.hi is None else gap.hi


def back_test(curve: Curve, seed: int = 0) -> BackTest | None:
    """None where half of the curve is too short to be fitted."""
    half = len(curve) // 2
    if half < FEWEST_POINTS:
        return None
    lo, hi = seen_band(fit(curve.first(half), seed=seed), curve, half)
    later = curve.gap[half:]
    return BackTest(int(((later >= lo) & (later <= hi)).sum()), len(later))


def seen_band(draws: CurveDraws, curve: Curve, start: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % band of the points from ``start`` on, as they would be measured."""
    seen = draws.seen(curve.tokens[start:], curve.annealed[start:], curve.weight[start:])
    lo, hi = np.quantile(seen, (ENDS[0], ENDS[2]), axis=0)
    return lo, hi


def _curve(trained: StageRecord) -> tuple[Curve, str] | str:
    if not {"loss", "evaluations"} <= trained.tables.keys():
        return "the training left no losses"
    made = gap_curve(trained.table("loss"), trained.table("evaluations"))
    if isinstance(made, str):
        return made
    return (
        made if len(made[0]) >= FEWEST_POINTS else f"{number_of(len(made[0]), 'point')} of a curve"
    )


def _why_failed(tested: BackTest) -> str:
    return (
        f"the law fails on this run itself: of the {number_of(tested.points, 'point')} of its "
        f"second half {tested.inside} lie in the 95 % band of a fit to the first; more tokens, so "
        "that the curve has its fall from the threshold behind it, make it one to go on from"
    )


def _why_never(reaches: float) -> str:
    return (
        f"does not get there: in {1 - reaches:.0%} of the curves that fit, the gap stays above the "
        f"limit, also with {FARTHEST:,.0f} times the tokens"
    )


# Figures


def forecast_metrics(
    found: TrainingForecast, records: Mapping[str, StageRecord], settings: Report
) -> list[Metric]:
    """``forecast_tokens``, ``_hours``, ``_kwh``, ``_cost`` and ``forecast_covered``."""
    trained, section, currency = records["train_qat"], settings.forecast, settings.cost.currency
    units = {**UNITS, COST: currency}
    made = [_covered(found)]
    if found.tokens is None or found.outcome == "never":
        why = found.reason
        return [Metric.missing(name, unit, why) for name, unit in units.items()] + made
    how = f"the law of {found.how}, until the judged gap is {found.fall:.3g} bits a byte lower"
    tokens = _metric("forecast_tokens", "tokens", 1.0, found, how)
    speed, speed_how = _speed(trained, section)
    if speed is None:
        absent = [Metric.missing(name, unit, speed_how) for name, unit in units.items()]
        return [tokens, *absent[1:], *made]
    hours = _metric("forecast_hours", "h", 1 / speed / 3600, found, f"tokens at {speed_how}")
    power_w, power_how = _power(trained, section, settings)
    if power_w is None:
        kwh = Metric.missing("forecast_kwh", "kWh", power_how)
    else:
        kwh = _metric("forecast_kwh", "kWh", power_w / 1e3 / speed / 3600, found,
                      f"hours at {power_how}")  # fmt: skip
    if section.price_per_hour is not None:
        text = f"hours at a declared {section.price_per_hour:g} {currency}"
        cost = _metric(COST, currency, section.price_per_hour / speed / 3600, found, text)
    elif power_w is None:
        cost = Metric.missing(COST, currency, power_how)
    else:
        price = price_of(records, settings.cost)
        factor = power_w / 1e3 / speed / 3600 * price.per_kwh
        cost = _metric(COST, currency, factor, found, f"energy alone, at {price.text}")
    return [tokens, hours, kwh, cost, *made]


def _metric(name: str, unit: str, factor: float, found: TrainingForecast, how: str) -> Metric:
    assert found.tokens is not None
    lo, middle, hi = (factor * tokens for tokens in found.tokens)
    open_end = "in some of the curves that fit it never gets there" if np.isinf(hi) else None
    return Metric(
        name, middle, unit, f"median and 95 % of the draws: {how}", "modelled", n=len(found.curve),
        lo=lo, hi=None if np.isinf(hi) else hi, reason=open_end,
    )  # fmt: skip


def _covered(found: TrainingForecast) -> Metric:
    if found.back_test is None:
        why = found.reason if found.curve is None else TOO_SHORT
        return Metric.missing(COVERED, "share", why)
    tested = found.back_test
    how = (
        f"{tested.inside} of {number_of(tested.points, 'point')} of the curve's second half, 95 % "
        "band"
    )
    return Metric(
        COVERED, tested.inside / tested.points, "share", f"{how} of a fit to its first",
        "modelled", n=tested.points, reason="no interval: one curve, whose points hang together",
    )  # fmt: skip


def _speed(trained: StageRecord, section: ForecastTerms) -> tuple[float | None, str]:
    if section.tokens_per_s is not None:
        where = f" on {section.hardware}" if section.hardware else ""
        return section.tokens_per_s, f"a declared {section.tokens_per_s:g} tokens/s{where}"
    own = trained.metric("training_tokens_per_s", arm=TERNARY)
    if own is None or not own.value:
        return None, "the training's speed was not measured: declare report.forecast.tokens_per_s"
    return own.value, f"{own.value:.4g} tokens/s, this run's, the ternary arm alone"


def _power(
    trained: StageRecord, section: ForecastTerms, settings: Report
) -> tuple[float | None, str]:
    if section.power_w is not None:
        return section.power_w, f"a declared {section.power_w:g} W"
    if section.hardware is not None:
        return None, f"the power of {section.hardware}: declare report.forecast.power_w"
    energy, time = (
        trained.metric(name, arm=TERNARY) for name in ("training_energy_j", "training_time_s")
    )
    if energy and energy.value and time and time.value:
        power_w = energy.value / time.value
        return power_w, f"{power_w:.4g} W, metered over this run's training"
    if settings.cost.assumed_power_w is not None:
        return settings.cost.assumed_power_w, "the declared report.cost.assumed_power_w"
    return None, "the training was not metered: declare report.forecast.power_w"


# What the report keeps


def forecast_facts(
    found: TrainingForecast, metrics: list[Metric], settings: Report
) -> dict[str, Any]:
    """For the sentences: plain data, numbers as they are."""
    values = {metric.name: metric for metric in metrics}
    facts: dict[str, Any] = {
        "outcome": found.outcome, "reason": found.reason, "trained": found.trained,
        "reaches": found.reaches, "hardware": settings.forecast.hardware,
        "currency": settings.cost.currency, "fall": found.fall,
    }  # fmt: skip
    for name in (*UNITS, COST):
        metric = values[name]
        facts[name] = [metric.lo, metric.value, metric.hi]
    if found.tokens is not None and np.isfinite(found.tokens[0]):
        facts["earliest"] = found.tokens[0]
    if found.back_test is not None:
        facts["back_test"] = [found.back_test.inside, found.back_test.points]
    return facts


def forecast_frame(found: TrainingForecast) -> pd.DataFrame:
    """Points and bands for a figure: part (curve, fit, back_test, ahead), tokens, gap, lo, hi."""
    curve, draws = found.curve, found.draws
    columns = ["part", "tokens", "gap", "lo", "hi"]
    if curve is None or draws is None:
        return pd.DataFrame(columns=columns)
    nothing = np.full(len(curve), np.nan)
    rows = [_part("curve", curve.tokens, curve.gap, nothing, nothing)]
    lo, hi = seen_band(draws, curve, 0)
    rows.append(_part("fit", curve.tokens, nothing, lo, hi))
    if found.back_test is not None:
        half = len(curve) // 2
        lo, hi = seen_band(fit(curve.first(half), seed=draws.seed), curve, half)
        rows.append(_part("back_test", curve.tokens[half:], nothing[half:], lo, hi))
    last = found.tokens[1] if found.tokens and np.isfinite(found.tokens[1]) else 0.0
    ahead = np.geomspace(curve.tokens[-1], max(3 * last, 30 * curve.tokens[-1]), 40)
    lo, middle, hi = np.quantile(draws.ends(ahead), ENDS, axis=0)
    rows.append(_part("ahead", ahead, middle, lo, hi))
    if found.tokens is not None:
        target = np.array([float(np.median(draws.end)) - found.fall])
        rows.append(_part("target", ahead[-1:], target, target, target))
    return pd.concat(rows, ignore_index=True)[columns]


def _part(
    part: str, tokens: np.ndarray, gap: np.ndarray, lo: np.ndarray, hi: np.ndarray
) -> pd.DataFrame:
    return pd.DataFrame({"part": part, "tokens": tokens, "gap": gap, "lo": lo, "hi": hi})


# Sentences


def forecast_lines(report: StageRecord, texts: Texts) -> list[str]:
    """What the card says of it: the forecast, and how the law did on this run itself."""
    facts = report.facts.get("forecast")
    if not facts or facts["outcome"] in ("holds", "unknown"):
        return []
    decision = report.facts.get("verdict", {}).get("decision")
    begin = texts("forecast.no_go" if decision == "no go" else "forecast.not_yet")
    values = {"begin": begin, "trained": rounded(facts["trained"], texts.language)}
    if facts["outcome"] == "never":
        percent = round(100 * (1 - facts["reaches"]))
        lines = [texts("forecast.never", percent=percent, **values)]
    else:
        lo, needed, hi = (
            "∞" if end is None else rounded(end, texts.language) for end in facts["forecast_tokens"]
        )
        values |= {"needed": needed, "lo": lo, "hi": hi, "bill": _bill(facts, texts)}
        lines = [texts(f"forecast.{facts['outcome']}", **values)]
        if facts["outcome"] == "open":
            lines[0] += " " + texts("forecast.chance", percent=round(100 * facts["reaches"]))
    if tested := facts.get("back_test"):
        lines.append(texts("forecast.back_test", inside=tested[0], points=tested[1]))
    return lines


def _bill(facts: Mapping[str, Any], texts: Texts) -> str:
    """Hours on what, kWh and money, as far as they are known."""
    parts = []
    hours, kwh, cost = (facts[name][1] for name in ("forecast_hours", "forecast_kwh", COST))
    if hours is not None:
        where = texts("forecast.on_yours", hardware=facts["hardware"]) if facts["hardware"] else (
            texts("forecast.here")
        )  # fmt: skip
        parts.append(f"{_time(hours, texts.language)} {where}")
    if kwh is not None:
        parts.append(f"{rounded(kwh, texts.language)} {texts.unit('kWh')}")
    if cost is not None:
        parts.append(f"{rounded(cost, texts.language)} {facts['currency']}")
    return "".join(f", {part}" for part in parts)


def _time(hours: float, language: str) -> str:
    if hours < 10:
        return duration(hours * 3600, language)
    return f"{number(round(hours), language)} {'ч' if language == 'ru' else 'h'}"
