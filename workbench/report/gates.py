"""Gates: rules about the run's figures, written down before the run.

The interval decides, not the value: its upper end for ``at_most``, its lower end for
``at_least``. A figure without an interval decides by its value. A gate whose labels fit
several figures must hold for each of them, so each gives a result of its own. A gate that
must hold (``on_fail: stop``) and could not be measured stops too: not known to hold is not
the same as held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from workbench.pilot.sections.report import Gate
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.wording.labels import label_text
from workbench.wording.text import Texts

Outcome = Literal["pass", "fail", "not measured"]


@dataclass(frozen=True)
class GateResult:
    """One gate held against one figure.

    side, limit: the rule. decider: the number held against the limit; decided_by: whether it
    is the interval's end or the value. reason_code: a key below ``reason.`` of the catalogue
    where the reason is the gate's own; reason: in words, of the gate or of the stage.
    """

    metric: str
    labels: dict[str, str]
    side: Literal["at_most", "at_least"]
    limit: float
    on_fail: Literal["stop", "warn"]
    why: str
    outcome: Outcome
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

    @property
    def stops(self) -> bool:
        return self.on_fail == "stop" and self.outcome != "pass"

    @property
    def only_uncertain(self) -> bool:
        """The value keeps the rule and its interval does not: a longer run may show it."""
        return self.reason_code == "interval_crosses"

    def sentence(self, texts: Texts) -> str:
        """The result in one line, for the terminal."""
        figure = {"name": self.metric, "labels": self.labels}
        if self.decider is None:
            return texts("gate.not_measured", figure=figure, reason=self.reason)
        unit = texts.unit(self.unit)
        return texts(
            f"gate.{self.side}", figure=figure, got=self.decider, limit=self.limit, unit=unit
        )


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
        results += [_hold(gate, stage, metric) for stage, metric in found] or [_absent(gate)]
    return results


def gates_frame(results: Sequence[GateResult]) -> pd.DataFrame:
    """One row a result; labels as ``name=value`` pairs."""
    columns = list(GateResult.__dataclass_fields__)
    rows = [{**asdict(r), "labels": label_text(r.labels)} for r in results]
    return pd.DataFrame(rows, columns=columns)


def _hold(gate: Gate, stage: str, metric: Metric) -> GateResult:
    rule = _rule(gate)
    figure: dict[str, Any] = {
        "stage": stage, "unit": metric.unit, "value": metric.value, "lo": metric.lo,
        "hi": metric.hi, "n": metric.n, "kind": metric.kind,
    }  # fmt: skip
    rule["labels"] = dict(metric.labels)
    if metric.value is None:
        return GateResult(**rule, **figure, outcome="not measured", reason=metric.reason or "")
    end = metric.hi if rule["side"] == "at_most" else metric.lo
    decider = metric.value if end is None else end
    holds = _keeps(decider, rule)
    crosses = not holds and _keeps(metric.value, rule)
    code = "interval_crosses" if crosses else ""
    return GateResult(
        **rule,
        **figure,
        outcome="pass" if holds else "fail",
        decider=decider,
        decided_by="value" if end is None else "interval",
        reason_code=code,
        reason=Texts()(f"reason.{code}") if code else "",
    )


def _absent(gate: Gate) -> GateResult:
    return GateResult(
        **_rule(gate),
        outcome="not measured",
        reason_code="no_figure",
        reason=Texts()("reason.no_figure"),
    )


def _rule(gate: Gate) -> dict[str, Any]:
    side = "at_least" if gate.at_most is None else "at_most"
    return {
        "metric": gate.metric, "labels": dict(gate.labels), "side": side,
        "limit": getattr(gate, side), "on_fail": gate.on_fail, "why": gate.why,
    }  # fmt: skip


def _keeps(value: float, rule: Mapping[str, Any]) -> bool:
    return value <= rule["limit"] if rule["side"] == "at_most" else value >= rule["limit"]
