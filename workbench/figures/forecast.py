"""The forecast: the run's own curve, what its law says beyond it, and how it did on itself."""

from __future__ import annotations

import plotly.graph_objects as go

from workbench.figures.theme import BLUE, GREEN, GREY, PURPLE, FigureTexts, figure, why_not
from workbench.records.stage_record import StageRecord

BANDS = {"fit": GREY, "back_test": PURPLE, "ahead": BLUE}


def forecast(record: StageRecord, language: str = "en") -> go.Figure:
    """Gap over tokens: points of this run, the band of the fit to its first half over the second,
    the ends of longer trainings with their 95 % band, and the gap that is needed."""
    say = FigureTexts(language)
    title = say("report.forecast.title")
    facts = record.facts.get("forecast")
    if not facts or "forecast" not in record.tables or (rows := record.table("forecast")).empty:
        return why_not(say, title, facts["reason"] if facts else say("fig.no_rows"))
    drawn = figure(say, title, say("axis.tokens"), say("axis.gap"), height=420, log="x")
    for part, colour in BANDS.items():
        own = rows[rows["part"] == part]
        if own.empty:
            continue
        drawn.add_scatter(
            x=[*own["tokens"], *own["tokens"][::-1]], y=[*own["hi"], *own["lo"][::-1]],
            fill="toself", fillcolor=colour, opacity=0.25, line={"width": 0}, mode="lines",
            name=say(f"report.forecast.{part}"), hoverinfo="skip",
        )  # fmt: skip
    ahead, curve = rows[rows["part"] == "ahead"], rows[rows["part"] == "curve"]
    drawn.add_scatter(
        x=ahead["tokens"], y=ahead["gap"], mode="lines", line={"color": BLUE, "width": 2},
        name=say("report.forecast.median"), hovertemplate="%{x:.3s}: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    drawn.add_scatter(
        x=curve["tokens"], y=curve["gap"], mode="markers", marker={"color": "#3F4650", "size": 6},
        name=say("report.forecast.curve"), hovertemplate="%{x:.3s}: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    for row in rows[rows["part"] == "target"].itertuples():
        drawn.add_hline(
            y=row.gap, line={"color": GREEN, "dash": "dash", "width": 1.5},
            annotation_text=say("report.forecast.target"),
        )  # fmt: skip
    return drawn
