"""Queue tuning: how far the rate may rise before requests miss their targets."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.theme import (
    ARM_COLOURS,
    GREY,
    FigureTexts,
    arms_in_order,
    figure,
    reason_for,
    why_not,
)
from workbench.records.stage_record import StageRecord
from workbench.serve.tuning import PROFILE

OUTCOME_SYMBOLS = {"held": "circle", "missed": "diamond-open", "overloaded": "triangle-up"}
DASHES = ("solid", "dot", "dash", "dashdot", "longdash", "longdashdot")


def tuning(record: StageRecord, language: str = "en") -> go.Figure:
    """Share of requests within their targets and first tokens (p95) over the offered rate, of the
    load's own requests, a line for each arm and setting. What was given up stands at the bottom:
    nobody waited for its share."""
    say = FigureTexts(language)
    title = say("deploy_rollback.tuning.title")
    points = _points(record)
    if points.empty:
        return why_not(say, title, reason_for(record, "largest_rate_over_load"))
    drawn = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12)
    plain = figure(say, title, height=560, log="x")
    drawn.update_layout(plain.layout)
    settings = sorted(set(zip(points["slots"], points["batch_wait_ms"], strict=True)))
    for arm in arms_in_order(points["arm"].unique()):
        for place, (slots, wait_ms) in enumerate(settings):
            own = points[
                (points["arm"] == arm)
                & (points["slots"] == slots)
                & (points["batch_wait_ms"] == wait_ms)
            ].sort_values("rate_per_s", kind="stable")
            if own.empty:
                continue
            name = say.labels({"arm": arm, "slots": str(slots), "batch_wait_ms": f"{wait_ms:g}"})
            for row, (column, factor) in enumerate((("met_share", 100.0), ("p95_ms", 1.0)), 1):
                drawn.add_scatter(
                    x=own["rate_per_s"],
                    y=factor * own[column],
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=row == 1,
                    line={
                        "color": ARM_COLOURS.get(arm, GREY),
                        "dash": DASHES[place % len(DASHES)],
                        "width": 1.8,
                    },
                    marker={"symbol": [OUTCOME_SYMBOLS[o] for o in own["outcome"]], "size": 9},
                    customdata=[say(f"deploy_rollback.tuning.{o}") for o in own["outcome"]],
                    hovertemplate="%{x:.4g}/s: %{y:.4g}, %{customdata}"
                    "<extra>%{fullData.name}</extra>",
                    row=row,
                    col=1,
                )
    axis = plain.layout.xaxis.to_plotly_json()
    drawn.update_xaxes({**axis, "title": None}, row=1, col=1)
    drawn.update_xaxes(axis, title_text=say("axis.requests_per_s"), row=2, col=1)
    vertical = plain.layout.yaxis.to_plotly_json()
    drawn.update_yaxes(
        vertical, title_text=say("axis.within_targets"), range=[-5, 105], row=1, col=1
    )
    drawn.update_yaxes(vertical, title_text=say("axis.ttft_p95_ms"), type="log", row=2, col=1)
    return drawn


def _points(record: StageRecord) -> pd.DataFrame:
    """Of the load's own requests; points that a late client spoilt say nothing."""
    if "tuning_points" not in record.tables:
        return pd.DataFrame()
    points = record.table("tuning_points")
    points = points[(points["requests"] == PROFILE) & (points["outcome"] != "refused")].copy()
    given_up = points["outcome"] == "overloaded"
    points["met_share"] = points["met_share"].where(~(given_up & points["met_share"].isna()), 0.0)
    return points
