"""The plans between precise and coarse: what each budget would buy, predicted from single losses.

The line is the table ``front``: for each budget the plan of least loss, by the integer program. The
stage measures the plan that it chooses; the others are predicted: the losses of single layers added
up, which they do only roughly. So the front says where to look, and the stage says what is true
there.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.theme import (
    BLUE,
    GREEN,
    GREY,
    PRECISION_COLOURS,
    FigureTexts,
    figure,
    why_not,
)
from workbench.records.stage_record import StageRecord
from workbench.wording.text import Texts


def front(
    record: StageRecord,
    language: str = "en",
    *,
    max_quality_loss: float | None = None,
    max_size_ratio: float | None = None,
) -> go.Figure:
    """Predicted quality loss over size of the plans of the front, with the measured candidates.

    max_quality_loss: a budget in bits per byte, whose smallest plan is marked. max_size_ratio: one
    of bytes over those in bf16, whose plan of least loss is marked.
    """
    say = FigureTexts(language)
    title = say("hybrid_plan.front.title")
    if (plans := predicted(record)).empty:
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(say, title, say("axis.size_ratio"), say("axis.predicted_loss"), height=420)
    before = "_before_training" if trained_with_its_plan(record) else ""
    drawn.add_scatter(
        x=plans["size_ratio"], y=plans["quality_loss"], mode="lines+markers",
        name=say(f"hybrid_plan.front.predicted{before}"), line={"color": GREY, "width": 1.5},
        marker={"size": 5}, customdata=[_layers(row, say) for _, row in plans.iterrows()],
        hovertemplate="%{x:.3f}: %{y:.4g}<br>%{customdata}<extra>%{fullData.name}</extra>",
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
    budget = {"color": GREEN, "dash": "dash", "width": 1.5}
    within = plans
    if max_quality_loss is not None:
        drawn.add_hline(y=max_quality_loss, line=budget)
        within = within[within["quality_loss"] <= max_quality_loss]
    if max_size_ratio is not None:
        drawn.add_vline(x=max_size_ratio, line=budget)
        within = within[within["size_ratio"] <= max_size_ratio]
    if len(within) and (max_quality_loss is not None or max_size_ratio is not None):
        least = "size_ratio" if max_size_ratio is None else "quality_loss"
        best = within.loc[within[least].idxmin()]
        drawn.add_scatter(
            x=[best["size_ratio"]], y=[best["quality_loss"]], mode="markers",
            name=say("hybrid_plan.front.within", layers=_layers(best, say)),
            marker={"color": GREEN, "symbol": "star", "size": 16},
        )  # fmt: skip
    return drawn


def predicted(record: StageRecord) -> pd.DataFrame:
    """The table ``front``, the smallest plan first, its losses against full precision: beyond the
    single losses added up, each plan is taken to lose what the chosen one, measured as a whole,
    loses beyond its own. A plan that was trained with is not: its losses are those before any
    training. Empty where the record has no front."""
    if "front" not in record.tables:
        return pd.DataFrame()
    plans = record.table("front").sort_values("size_ratio", kind="stable")
    plans["quality_loss"] += _offset(record)
    return plans


def trained_with_its_plan(record: StageRecord) -> bool:
    """Whether the plan came before the training, and so under a budget of size, time or energy."""
    return record.facts.get("base") == "trained"


def _layers(plan: pd.Series, say: Texts) -> str:
    """``12 ternary, 2 INT8``: how many units of a plan have which precision."""
    return ", ".join(
        f"{int(plan[name])} {say.label('precision', name)}"
        for name in PRECISION_COLOURS
        if plan.get(name, 0) > 0
    )


def _offset(record: StageRecord) -> float:
    if trained_with_its_plan(record) or not {"candidates", "plan"} <= record.tables.keys():
        return 0.0
    candidates = record.table("candidates")
    measured = candidates.loc[candidates["chosen"], "quality_loss"]
    return float(measured.iloc[0] - record.table("plan")["quality_loss"].sum())
