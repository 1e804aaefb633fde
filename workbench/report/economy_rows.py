"""The case's figures in the report's record: metrics for gates, tables for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from workbench.economics.case import Case
from workbench.economics.what_if import CaseFigure, CaseResult, Turn
from workbench.records.metric import Metric
from workbench.report.economy import Building

METRICS = {
    "servers": "servers_needed",
    "servers_freed": "servers_freed",
    "energy_kwh": "energy_kwh_per_year",
    "year": "cost_per_year",
    "per_1k_requests": "cost_per_1k_requests",
    "per_1m_input_tokens": "cost_per_1m_input_tokens",
    "per_1m_output_tokens": "cost_per_1m_output_tokens",
    "per_accepted_answer": "cost_per_accepted_answer",
    "npv": "net_present_value",
    "payback_y": "payback_years",
}
"""Figure of the case -> figure of the run."""


def metrics(case: Case, result: CaseResult) -> list[Metric]:
    """What a gate may name; each says of which numbers it is made."""
    found = []
    for figure in result.figures:
        if (name := METRICS.get(figure.name)) is None:
            continue
        if figure.value is None:
            found.append(Metric.missing(name, figure.unit, figure.reason, arm=figure.arm))
            continue
        alone = figure.lo is None
        found.append(
            Metric(
                name, figure.value, figure.unit, how_of(figure, case), figure.kind,
                lo=figure.lo, hi=figure.hi, labels={"arm": figure.arm},
                reason="none of its measured numbers has an interval" if alone else None,
            )
        )  # fmt: skip
    known = {(metric.name, metric.labels["arm"]) for metric in found}
    for arm in case.arms:
        for name in METRICS.values():
            if (name, arm.name) not in known and (why := _why_absent(name, arm.name, case)):
                found.append(Metric.missing(name, "", why, arm=arm.name))
    return found


def _why_absent(name: str, arm: str, case: Case) -> str:
    """Why the case lacks this figure of the arm; empty for one that the arm cannot have."""
    if name in (METRICS["npv"], METRICS["payback_y"]) and arm == case.baseline:
        return ""
    if case.no_power:
        return case.no_power
    if f"passed.{arm}" in case.numbers:
        return "no answer of the arm to the own prompts keeps to its check"
    return "no load was served by the arm, so no answer of it was accepted or not"


def missing(reason: str) -> list[Metric]:
    """Every figure of the case, where there is no case."""
    return [Metric.missing(name, "", reason) for name in METRICS.values()]


def how_of(figure: CaseFigure, case: Case) -> str:
    """In words, how a figure was obtained and what it hangs on."""
    sample = "sample prices; " if case.sample else ""
    weak = ", ".join(figure.made_of)
    interval = "; interval of the measured numbers alone" if figure.lo is not None else ""
    return f"{sample}{figure.kind} because of {weak}{interval}"


def figures_frame(result: CaseResult) -> pd.DataFrame:
    columns = list(CaseFigure.__dataclass_fields__)
    rows = [asdict(figure) | {"made_of": ", ".join(figure.made_of)} for figure in result.figures]
    return pd.DataFrame(rows, columns=columns)


def tornado_frame(turns: Sequence[Turn]) -> pd.DataFrame:
    columns = [*Turn.__dataclass_fields__, "swing"]
    return pd.DataFrame([asdict(turn) | {"swing": turn.swing} for turn in turns], columns=columns)


def numbers_frame(case: Case) -> pd.DataFrame:
    """Every number of the case and how it is known."""
    rows = [{"number": name, **asdict(number)} for name, number in case.numbers.items()]
    return pd.DataFrame(rows).astype({"lo": float, "hi": float})


def months_frame(house: Building) -> pd.DataFrame:
    months = house.measured.months if house.measured else ()
    return pd.DataFrame([asdict(month) for month in months], columns=["month", "pue", "hours"])
