"""The case on the page: a year of every arm, a promise taken apart, what it all hangs on."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.records.stage_record import StageRecord
from workbench.wording.numbers import number, raw, with_interval
from workbench.wording.recorded import number_name
from workbench.wording.text import Texts

SHOWN_TURNS = 8
NOTHING_DECLARED = ("price.", "per_year.", "once.", "hours.", "per_hour.", "kwh.")
"""Of these a number that is 0 says that nothing was declared, and is not shown."""
FIGURES = (
    "accelerators_fluid", "accelerators", "servers", "servers_freed", "energy_kwh",
    "energy_saving_kwh", "capital", "running", "energy", "demand", "one_off", "year",
    "fallback", "per_1k_requests", "per_1m_input_tokens", "per_1m_output_tokens",
    "per_accepted_answer",
    "energy_saving", "npv", "payback_y",
)  # fmt: skip
"""In the order of a reader; those that are 0 in every arm are left out."""
NEVER_LEFT_OUT = ("servers_freed", "energy_saving_kwh", "npv", "payback_y", "year")


def economy_view(record: StageRecord | None, texts: Texts) -> dict[str, Any] | None:
    """None for a record of before; with ``reason`` alone where there is no case."""
    facts = record.facts.get("economy") if record else None
    if record is None or facts is None:
        return None
    if "reason" in facts:
        goals = _goal_rows(record, texts) if "goals" in record.tables else []
        return {"reason": facts["reason"], "goals": goals}
    figures = record.table("economy")
    arms = list(dict.fromkeys(figures["arm"]))
    return {
        "arms": [texts.get(f"arm.{arm}", arm) for arm in arms],
        "rows": _figure_rows(figures, arms, facts["accelerators"], texts),
        "texts": facts["texts"],
        "horizon": facts["case"]["horizon_y"],
        "turns": _turn_rows(record, facts["case"]["currency"], texts),
        "goals": _goal_rows(record, texts),
        "numbers": _number_rows(record, texts),
        "months": _month_rows(record, texts),
    }


def _figure_rows(
    figures: pd.DataFrame, arms: list[str], accelerators: bool, texts: Texts
) -> list[dict[str, Any]]:
    rows = []
    for name in FIGURES:
        own = figures[figures["name"] == name].set_index("arm")
        if own.empty or (name not in NEVER_LEFT_OUT and not own["value"].fillna(0).any()):
            continue
        cells = [_cell(own.loc[arm], texts) if arm in own.index else None for arm in arms]
        unit = texts.unit(own["unit"].iloc[0])
        # Of a processor there are no accelerators: what carries the load is a machine.
        key = f"economy.{name}"
        title = texts(key if accelerators else key.replace("accelerators", "machines"))
        if name.startswith(("servers", "accelerators")):
            unit = ""  # the title counts them
        rows.append({"title": title, "unit": unit, "cells": cells})
    return rows


def _cell(row: Any, texts: Texts) -> dict[str, str]:
    kind = {"kind": row["kind"], "kind_name": texts(f"kind.{row['kind']}")}
    kind["csv"] = raw(row["value"], row["lo"], row["hi"])
    weak = ", ".join(number_name(n, texts) for n in row["made_of"].split(", ") if n)
    if pd.isna(row["value"]):
        return kind | {"value": texts("economy.never"), "interval": "", "weak": weak}
    lo, hi = (None if pd.isna(row[end]) else row[end] for end in ("lo", "hi"))
    if lo is not None and hi is not None and lo == hi:
        lo = hi = None  # a whole number that the measured intervals do not move
    value, interval = with_interval(row["value"], lo, hi, texts.language)
    return kind | {"value": value, "interval": interval, "weak": weak}


def _turn_rows(record: StageRecord, currency: str, texts: Texts) -> list[dict[str, Any]]:
    """A row a number, the widest swing of any arm first, a cell an arm; the bars of an arm share
    one scale, in percent of the span of its savings."""
    turns = record.table("tornado")
    if turns.empty:
        return []
    widest = turns.groupby("number")["swing"].max().sort_values(ascending=False)
    shown = list(widest.index[:SHOWN_TURNS])
    turns = turns[turns["number"].isin(shown)]
    arms = list(dict.fromkeys(record.table("economy")["arm"]))[1:]
    spans = {arm: _span(turns[turns["arm"] == arm]) for arm in arms}
    rows = []
    for name in shown:
        own = turns[turns["number"] == name].set_index("arm")
        first = own.iloc[0]
        rows.append(
            {
                "number": number_name(name, texts),
                "csv": raw(first["low"], first["high"]),
                "low": number(first["low"], texts.language),
                "high": number(first["high"], texts.language),
                "cells": [
                    _turn_cell(own.loc[arm], spans[arm], currency, texts)
                    if arm in own.index else None
                    for arm in arms
                ],
            }
        )  # fmt: skip
    return rows


def _span(turns: pd.DataFrame) -> tuple[float, float]:
    ends = turns[["saving_low", "saving_high"]].to_numpy(float)
    return (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 0.0)


def _turn_cell(
    row: Any, span: tuple[float, float], currency: str, texts: Texts
) -> dict[str, Any]:  # fmt: skip
    low, high = sorted((row["saving_low"], row["saving_high"]))
    length = (span[1] - span[0]) or 1.0
    ends = (  # to the digits that an interval of this width has in the tables above
        with_interval(row[name], low, high, texts.language)[0]
        for name in ("saving_low", "saving_high")
    )
    return {
        "csv": raw(low, high),
        "low": next(ends),
        "high": f"{next(ends)} {currency}",
        "left": round(100 * (low - span[0]) / length, 1),
        "width": round(max(1.0, 100 * (high - low) / length), 1),
    }


def _goal_rows(record: StageRecord, texts: Texts) -> list[dict[str, str]]:
    rows = []
    accelerators = record.facts["economy"].get("accelerators", True)
    for row in record.table("goals").to_dict("records"):
        what = row["what"] if accelerators else row["what"].replace("accelerators", "machines")
        got, interval = texts("kind.not measured"), ""
        if not pd.isna(row["got"]):
            ends = (None if pd.isna(row[end]) else row[end] for end in ("lo", "hi"))
            got, interval = with_interval(row["got"], *ends, texts.language)
        none = pd.isna(row["needed"])
        needed = texts("goal.nothing_enough") if none else texts(
            f"page.{row['side']}", limit=row["needed"])  # fmt: skip
        rows.append(
            {
                "arm": texts.get(f"arm.{row['arm']}", row["arm"]),
                "rule_csv": raw(row["side"], row["needed"]),
                "csv": raw(row["got"], row["lo"], row["hi"]),
                "what": texts(f"goal.{what}"), "needed": needed,
                "unit": texts.unit(row["unit"]), "got": got, "interval": interval,
                "kind": row["kind"], "kind_name": texts(f"kind.{row['kind']}"),
                "outcome": {"holds": "pass", "fails": "fail"}.get(row["outcome"], "inconclusive"),
                "outcome_name": texts(f"goal.outcome.{row['outcome']}"), "how": row["how"],
            }
        )  # fmt: skip
    return rows


def _number_rows(record: StageRecord, texts: Texts) -> list[dict[str, str]]:
    rows = []
    for row in record.table("economy_numbers").to_dict("records"):
        if not row["value"] and row["number"].startswith(NOTHING_DECLARED):
            continue
        ends = (
            None if row["lo"] == row["hi"] or pd.isna(row[end]) else row[end]
            for end in ("lo", "hi")
        )
        value, interval = with_interval(row["value"], *ends, texts.language)
        rows.append(
            {
                "csv": raw(row["value"], row["lo"], row["hi"]),
                "number": number_name(row["number"], texts), "value": value, "interval": interval,
                "unit": texts.unit(row["unit"]), "kind": row["kind"],
                "kind_name": texts(f"kind.{row['kind']}"), "source": row["source"],
            }
        )  # fmt: skip
    return rows


def _month_rows(record: StageRecord, texts: Texts) -> list[dict[str, str]]:
    """Of the building's telemetry, the best and the worst marked."""
    months = record.table("pue_months")
    if months.empty:
        return []
    best, worst = months["pue"].idxmin(), months["pue"].idxmax()
    return [
        {
            "pue_csv": raw(row["pue"]), "hours_csv": raw(row["hours"]),
            "month": row["month"], "pue": f"{number(round(row['pue'], 3), texts.language)}",
            "hours": number(round(row["hours"]), texts.language),
            "mark": "" if best == worst else texts("economy.best") if at == best else
            texts("economy.worst") if at == worst else "",
        }
        for at, row in months.iterrows()
    ]  # fmt: skip
