"""Gates: rules about the run's figures, written down before the run, and their three outcomes.

The interval decides, not the value. **pass**: the whole interval keeps the rule. **fail**: the
whole interval lies beyond it. **inconclusive**: it crosses the limit, or there is none that the
observations support, or the figure was not measured; a value alone decides nothing, or fewer
observations would make every gate easier to pass. Two kinds of figures need no such interval: an
exact one (bytes that were counted) decides by its value, and of a count none in n keeps "at
most 0" and is said with n, because no number of requests proves a rate of nought.

A gate whose labels fit several figures must hold for each of them, so each gives a result of
its own. A gate that must hold (``on_fail: stop``) and is inconclusive stops too: not known to
hold is not the same as held.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pandas as pd
from scipy.stats import t

from workbench.pilot.sections.base import Words, said_in
from workbench.pilot.sections.report import Gate
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.wording.labels import label_text, labels_of
from workbench.wording.text import Texts

GateOutcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class GateResult:
    """One gate held against one figure.

    side, limit: the rule. decider: the number held against the limit; decided_by: whether it
    is the interval's end or the value. reason_code: a key below ``reason.`` of the catalogue
    where the reason is the gate's own; reason: in words, of the gate or of the stage.
    effect: the smallest visible effect, where that is why the result is inconclusive.
    chance: the gate fails, but with as many gates as there are one such failure may be chance.
    """

    metric: str
    labels: dict[str, str]
    side: Literal["at_most", "at_least"]
    limit: float
    on_fail: Literal["stop", "warn"]
    why: str
    outcome: GateOutcome
    stage: str = ""
    unit: str = ""
    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    n: int | None = None
    kind: str = "not measured"
    decider: float | None = None
    decided_by: Literal["interval", "value", ""] = ""
    reason_code: str = ""
    reason: str = ""
    chance: bool = False
    effect: float | None = None

    @property
    def stops(self) -> bool:
        return self.on_fail == "stop" and self.outcome != "pass"

    def sentence(self, texts: Texts) -> str:
        """The result in one line, for the terminal."""
        figure = {"name": self.metric, "labels": self.labels}
        if self.decider is None:
            return texts("gate.open", figure=figure, reason=self.reason)
        unit = texts.unit(self.unit)
        bound = {"got": self.decider} if self.decider != self.value else {}
        code = f"gate.{self.side}{'_by_its_end' if bound else ''}"
        said = texts(code, figure=figure, value=self.value, limit=self.limit, unit=unit, **bound)
        return said if self.outcome != "inconclusive" else f"{said} ({self.reason})"


def evaluate(gates: Sequence[Gate], records: Mapping[str, StageRecord]) -> list[GateResult]:
    """Hold every gate against every figure it names; at least one result for each gate."""
    results: list[GateResult] = []
    for gate in gates:
        found = [
            (stage, metric)
            for stage, record in records.items()
            for metric in record.metrics
            if metric.matches(gate.metric, gate.labels)
        ]
        results += [_hold(gate, stage, metric) for stage, metric in found] or [
            _absent(gate, records)
        ]
    return _with_chance([_with_noise(result, records) for result in results])


def _with_noise(result: GateResult, records: Mapping[str, StageRecord]) -> GateResult:
    """Inconclusive where the session could not have seen the gate's margin, by its A/A comparison
    or, under the load, by the ratio's own scatter.

    The margin of a ratio is its limit's distance from 1. A result that lies beyond the limit by
    more than the smallest visible effect stands all the same.
    """
    effect = _visible_effect(result, records)
    if effect is None or result.limit <= 0 or result.limit == 1:
        return result
    margin = math.exp(abs(math.log(result.limit))) - 1
    clear = result.outcome != "inconclusive" and abs(
        math.log((result.decider or result.limit) / result.limit)
    ) > math.log1p(effect)
    if effect <= margin or clear:
        return result
    return replace(
        result,
        outcome="inconclusive",
        effect=effect,
        **_own_reason("too_noisy", effect=100 * effect, margin=100 * margin),
    )


def _visible_effect(result: GateResult, records: Mapping[str, StageRecord]) -> float | None:
    if result.stage != "measure_ab":
        return None
    if result.metric in ("speedup", "throughput_ratio"):
        own = {"class": result.labels.get("class") or f"batch_{result.labels.get('batch')}"}
    elif result.labels.get("source") == "load" and result.metric.endswith("_speedup"):
        own = {**result.labels, "speedup": result.metric}
    else:
        return None
    seen = records["measure_ab"].metric("smallest_visible_effect", **own)
    return None if seen is None or seen.value is None else abs(seen.value)


def gates_frame(results: Sequence[GateResult]) -> pd.DataFrame:
    """One row a result; labels as ``name=value`` pairs."""
    columns = list(GateResult.__dataclass_fields__)
    rows = [{**asdict(r), "labels": label_text(r.labels)} for r in results]
    return pd.DataFrame(rows, columns=columns)


def recorded_results(report: StageRecord) -> list[GateResult]:
    """The results that a judgement wrote down, as they were: the inverse of :func:`gates_frame`."""
    known = set(GateResult.__dataclass_fields__)
    return [
        GateResult(
            **{name: _plain(value) for name, value in row.items() if name in known - {"labels"}},
            labels=labels_of(row["labels"]),
        )
        for row in report.table("gates").to_dict("records")
    ]


def _plain(value: Any) -> Any:
    """None for what a table holds as not a number; its counts are floats where one is absent."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _hold(gate: Gate, stage: str, metric: Metric) -> GateResult:
    rule = _rule(gate) | {"labels": dict(metric.labels)}
    figure = {
        "stage": stage, "unit": metric.unit, "value": metric.value, "lo": metric.lo,
        "hi": metric.hi, "n": metric.n, "kind": metric.kind,
    }  # fmt: skip
    return GateResult(**rule, **figure, **_judged(metric, rule["side"], rule["limit"]))


def _judged(metric: Metric, side: str, limit: float) -> dict[str, Any]:
    """Outcome, decider and reason of one figure."""
    if metric.value is None:
        return {"outcome": "inconclusive", "reason": metric.reason or ""}
    if metric.basis == "exact":
        outcome = "pass" if _keeps(metric.value, side, limit) else "fail"
        return {"outcome": outcome, "decider": metric.value, "decided_by": "value"}
    if metric.basis == "count" and metric.n and metric.value == limit == 0 and side == "at_most":
        return {
            "outcome": "pass", "decider": 0.0, "decided_by": "value",
            **_own_reason("none_of_n", n=metric.n),
        }  # fmt: skip
    worst, best = (metric.hi, metric.lo) if side == "at_most" else (metric.lo, metric.hi)
    if worst is not None and _keeps(worst, side, limit):
        return {"outcome": "pass", "decider": worst, "decided_by": "interval"}
    if best is not None and not _keeps(best, side, limit):
        return {"outcome": "fail", "decider": best, "decided_by": "interval"}
    if worst is not None:
        return {
            "outcome": "inconclusive", "decider": worst, "decided_by": "interval",
            **_own_reason("interval_crosses"),
        }  # fmt: skip
    why = {"reason": metric.reason} if metric.reason else _own_reason("no_interval")
    return {"outcome": "inconclusive", **why}


def _own_reason(code: str, **values: Any) -> dict[str, str]:
    return {"reason_code": code, "reason": Texts()(f"reason.{code}", **values)}


def _with_chance(results: list[GateResult]) -> list[GateResult]:
    """Mark the failures that m gates would bring by chance: with m at their limits, one of them
    fails in up to m times 2.5 % of all runs, so the verdict asks for intervals of 1 - 0.05/m."""
    judged = sum(r.decided_by == "interval" for r in results)
    return [
        replace(r, chance=r.decided_by == "interval" and not _excludes_widened(r, judged))
        if r.outcome == "fail"
        else r
        for r in results
    ]


def _excludes_widened(result: GateResult, family: int) -> bool:
    """Whether the interval would still exclude the rule at level 1 - 0.05/``family``.

    Its half width grows as Student's t does; on a logarithmic scale where the figure is positive.
    """
    if family == 1 or result.value is None or result.decider is None:
        return True
    freedom = max(1, (result.n or 2) - 1)
    factor = float(t.isf(0.025 / family, freedom) / t.isf(0.025, freedom))
    value, end, limit = result.value, result.decider, result.limit
    if min(value, end, limit) > 0:
        value, end, limit = math.log(value), math.log(end), math.log(limit)
    widened = value + factor * (end - value)
    return widened > limit if result.side == "at_most" else widened < limit


def _absent(gate: Gate, records: Mapping[str, StageRecord]) -> GateResult:
    """Of a figure that is missing for all arms the reason stands without labels: it is this one's
    too."""
    for record in records.values():
        for metric in record.metrics:
            if (
                metric.name == gate.metric and metric.value is None and metric.reason
                and metric.labels.items() <= gate.labels.items()
            ):  # fmt: skip
                return GateResult(**_rule(gate), outcome="inconclusive", reason=metric.reason)
    return GateResult(**_rule(gate), outcome="inconclusive", **_own_reason("no_figure"))


def _rule(gate: Gate) -> dict[str, Any]:
    side = "at_least" if gate.at_most is None else "at_most"
    return {
        "metric": gate.metric, "labels": dict(gate.labels), "side": side,
        "limit": getattr(gate, side), "on_fail": gate.on_fail, "why": _kept(gate.why),
    }  # fmt: skip


def _keeps(value: float, side: str, limit: float) -> bool:
    return value <= limit if side == "at_most" else value >= limit


def _kept(why: Words) -> str:
    """As a column of texts holds it; in several languages as JSON."""
    return why if isinstance(why, str) else json.dumps(why, ensure_ascii=False)


def why_in(kept: str, language: str) -> str:
    """The sentence of a gate, from the table's column, in ``language`` if it is given in that."""
    try:
        words = json.loads(kept) if kept.startswith("{") else kept
    except ValueError:
        words = kept
    return said_in(words if isinstance(words, dict) else kept, language)
