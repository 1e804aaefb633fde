"""Load profile: when requests come, and how long their prompts and answers are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.theme import (
    BLUE,
    CLASS_COLOURS,
    GREY,
    VERMILION,
    FigureTexts,
    figure,
    thinned,
    why_not,
)
from workbench.records.stage_record import StageRecord

MOST_BARS = 300
"""More windows than this are averaged in groups: a bar must stay wider than a pixel."""


def rate(record: StageRecord, language: str = "en") -> go.Figure:
    """Requests per second over time, classes stacked."""
    say = FigureTexts(language)
    title = say("profile_load.rate.title")
    if "windows" not in record.tables or (rows := record.table("windows")).empty:
        return why_not(say, title, say("fig.no_rows"))
    starts = np.sort(rows["start_s"].unique())
    window_s = float(starts[1] - starts[0]) if len(starts) > 1 else _only_window_s(rows)
    together = -(-len(starts) // MOST_BARS)
    long = starts[-1] > 2 * 3600
    scale, axis = (3600, "axis.time_h") if long else (60, "axis.time_min")
    drawn = figure(say, title, say(axis), say("axis.requests_per_s"))
    for name in sorted(rows["class"].unique(), reverse=True):
        own = rows[rows["class"] == name].sort_values("start_s")
        own = own.groupby(np.arange(len(own)) // together).agg(
            {"start_s": "min", "rate_per_s": "mean"}
        )
        drawn.add_bar(
            x=own["start_s"] / scale,
            y=own["rate_per_s"],
            offset=0,
            width=0.96 * together * window_s / scale,
            name=say.label("class", name),
            marker_color=CLASS_COLOURS.get(name, GREY),
            hovertemplate="%{y:.3g}/s<extra>%{fullData.name}</extra>",
        )
    drawn.update_layout(barmode="stack")
    return drawn


def lengths(record: StageRecord, language: str = "en") -> go.Figure:
    """Share of requests whose prompt, or output, is at most so long."""
    say = FigureTexts(language)
    title = say("profile_load.lengths.title")
    if "requests" not in record.tables or (rows := record.table("requests")).empty:
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(say, title, say("axis.tokens"), say("axis.share_at_most"), log="x")
    for column, colour, dash in (
        ("prompt_tokens", BLUE, "solid"),
        ("output_tokens", VERMILION, "dash"),
    ):
        # Quantiles instead of all requests: the same curve, at a fixed number of points.
        shares = np.linspace(0, 1, min(len(rows), 400))
        drawn.add_scatter(
            x=np.maximum(1, rows[column].quantile(shares)),
            y=100 * shares,
            name=say.metric(column),
            mode="lines",
            line={"color": colour, "width": 2.5, "dash": dash},
            hovertemplate="%{y:.0f} % ≤ %{x:,.0f}<extra>%{fullData.name}</extra>",
        )
    return drawn


def shapes(record: StageRecord, language: str = "en") -> go.Figure:
    """Each request by the length of its prompt and of its output."""
    say = FigureTexts(language)
    title = say("profile_load.shapes.title")
    if "requests" not in record.tables or (rows := record.table("requests")).empty:
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(
        say, title, say("axis.prompt_tokens"), say("axis.output_tokens"), height=420, log="xy"
    )
    shown = thinned(rows)
    for name in sorted(shown["class"].unique(), reverse=True):
        own = shown[shown["class"] == name]
        drawn.add_scatter(
            x=np.maximum(1, own["prompt_tokens"]),
            y=np.maximum(1, own["output_tokens"]),
            name=say.label("class", name),
            mode="markers",
            marker={
                "color": CLASS_COLOURS.get(name, GREY),
                "symbol": "circle" if name == "interactive" else "diamond",
                "size": 5,
                "opacity": 0.45,
            },
            hovertemplate="%{x:,.0f} → %{y:,.0f}<extra>%{fullData.name}</extra>",
        )
    return drawn


FIGURES = (rate, lengths, shapes)


def _only_window_s(rows: pd.DataFrame) -> float:
    """Length of a lone window, from its number of requests and their rate."""
    busy = rows[rows["rate_per_s"] > 0].iloc[:1]
    return float((busy["requests"] / busy["rate_per_s"]).sum()) or 60.0
