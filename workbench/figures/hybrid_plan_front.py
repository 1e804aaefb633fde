"""The plans between precise and coarse: what each budget would buy, predicted from single losses.

The stage measures the plan that it chooses; the others here are predicted: the losses of single
layers added up, which they do only roughly. So the front says where to look, and the stage says
what is true there.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.theme import BLUE, GREEN, GREY, FigureTexts, figure, why_not
from workbench.hybrid.plan import Option, descent
from workbench.records.stage_record import StageRecord

BYTES_OF_BF16 = {"ternary": 8.0, "int8": 2.0, "high_precision": 1.0}
"""A weight in bf16 takes so many times its bytes in that precision, scales left out."""


def front(
    record: StageRecord, language: str = "en", *, max_quality_loss: float | None = None
) -> go.Figure:
    """Predicted quality loss over size of the plans of the descent, with the measured candidates.

    max_quality_loss: a budget in bits per byte, whose plan is marked.
    """
    say = FigureTexts(language)
    title = say("hybrid_plan.front.title")
    if "sensitivity" not in record.tables or (rows := record.table("sensitivity")).empty:
        return why_not(say, title, say("fig.no_rows"))
    base = record.facts.get("base", str(rows["base"].iloc[0]))
    plans = predicted(rows, base)
    plans["quality_loss"] += _offset(record)
    drawn = figure(say, title, say("axis.size_ratio"), say("axis.predicted_loss"), height=420)
    drawn.add_scatter(
        x=plans["size_ratio"], y=plans["quality_loss"], mode="lines+markers",
        name=say("hybrid_plan.front.predicted"), line={"color": GREY, "width": 1.5},
        marker={"size": 5}, hovertemplate="%{x:.3f}: %{y:.4g}<extra>%{fullData.name}</extra>",
    )  # fmt: skip
    if "candidates" in record.tables:
        own = record.table("candidates")
        drawn.add_scatter(
            x=own["size_ratio"], y=own["quality_loss"], mode="markers",
            name=say("hybrid_plan.front.measured"),
            marker={"color": BLUE, "symbol": "diamond", "size": 12},
            customdata=own["base"],
            hovertemplate="%{customdata}: %{x:.3f}, %{y:.4g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    if max_quality_loss is not None:
        drawn.add_hline(y=max_quality_loss, line={"color": GREEN, "dash": "dash", "width": 1.5})
        within = plans[plans["quality_loss"] <= max_quality_loss]
        if len(within):
            best = within.loc[within["size_ratio"].idxmin()]
            drawn.add_scatter(
                x=[best["size_ratio"]], y=[best["quality_loss"]], mode="markers",
                name=say("hybrid_plan.front.within", layers=best["layers"]),
                marker={"color": GREEN, "symbol": "star", "size": 16},
            )  # fmt: skip
    return drawn


def _offset(record: StageRecord) -> float:
    """From losses against the base to those against full precision: what the chosen plan, measured
    as a whole, loses beyond the sum of its single losses."""
    if not {"candidates", "plan"} <= record.tables.keys():
        return 0.0
    candidates = record.table("candidates")
    measured = candidates.loc[candidates["chosen"], "quality_loss"]
    return float(measured.iloc[0] - record.table("plan")["quality_loss"].sum())


def predicted(rows: pd.DataFrame, base: str) -> pd.DataFrame:
    """A row a plan: size_ratio, quality_loss (against the base) and how many layers of each
    precision it has, in words; the plans begin with every layer precise, whatever the base.
    rows: the table ``sensitivity``."""
    kept = "ternary" if base == "ternary" else "high_precision"
    options, bf16 = [], {}
    for unit, own in rows.groupby("layer", sort=False):
        known = {str(row.precision): row for row in own.itertuples()}
        name = "high_precision" if "high_precision" in known else next(iter(known))
        bf16[unit] = known[name].size_bytes * BYTES_OF_BF16[name]
        options += [
            Option(unit, row.precision, row.quality_loss, int(row.size_bytes), True)
            for row in known.values()
        ]
        if kept not in known:
            options.append(Option(unit, kept, 0.0, int(bf16[unit] / BYTES_OF_BF16[kept]), False))
    of = {(option.unit, option.precision): option for option in options}
    whole = sum(bf16.values())
    plans = []
    for plan in descent(options, True):
        chosen = [of[unit, precision] for unit, precision in plan.items()]
        counts = pd.Series([option.precision for option in chosen]).value_counts()
        plans.append(
            {
                "size_ratio": sum(option.size_bytes for option in chosen) / whole,
                "quality_loss": sum(option.quality_loss for option in chosen),
                "layers": ", ".join(f"{n} {name}" for name, n in counts.items()),
            }
        )
    return pd.DataFrame(plans).sort_values("size_ratio")
