"""Runs side by side: every shared figure against the first run, and quality against speed."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.compare_tables import every_figure, reasons, settings, verdicts
from workbench.figures.theme import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    FigureTexts,
    figure,
    why_not,
    wrapped,
)
from workbench.report.compare import Comparison, state_of
from workbench.wording.labels import labels_of
from workbench.wording.numbers import number

MOST_ROWS = 25
FINE_TICKS = (0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2, 3, 5)
TICKS = (0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100, 1000)
FINE = 1.6
"""Up to this ratio, or one over it, the ticks between 0.5 and 2 have room."""
SYMBOLS = {"better": "triangle-up", "worse": "triangle-down", "neither": "circle", "same": "circle"}
COLOURS = {"better": GREEN, "worse": VERMILION, "neither": BLUE, "same": GREY}
RUN_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)


def ratios(found: Comparison, language: str = "en") -> go.Figure:
    """Ratio of the last run to the first for the figures that moved most."""
    say = FigureTexts(language)
    title = say("compare.ratios.title")
    rows = found.figures
    rows = rows[rows["ratio"] > 0]
    if rows.empty:
        return why_not(say, title, say("compare.no_shared"))
    moved = rows["ratio"].map(lambda r: max(r, 1 / r)).sort_values(ascending=False)
    shown = rows.loc[moved.index[:MOST_ROWS]]
    verdicts = [
        _verdict(row, state_of([metrics[0], metrics[-1]]))
        for row, metrics in zip(
            shown.to_dict("records"), (found.metrics[place] for place in shown.index), strict=True
        )
    ]
    names = [
        wrapped(say.figure(m, labels_of(t)), 64)
        for m, t in zip(shown["metric"], shown["labels"], strict=True)
    ]
    lines = sum(1 + name.count("<br>") for name in names)
    height = 170 + 12 * len(shown) + 16 * lines
    drawn = figure(say, title, say("axis.ratio"), height=height, log="x")
    for verdict, colour in COLOURS.items():
        chosen = [place for place, own in enumerate(verdicts) if own == verdict]
        if not chosen:
            continue
        drawn.add_scatter(
            x=shown["ratio"].iloc[chosen],
            y=[names[place] for place in chosen],
            mode="markers",
            name=say(f"compare.{verdict}"),
            marker={"color": colour, "symbol": SYMBOLS[verdict], "size": 11},
            customdata=[reasons(shown["because"].iloc[place], say) for place in chosen],
            hovertemplate="%{x:.3g}× · %{customdata}<extra>%{fullData.name}</extra>",
        )
    drawn.add_vline(x=1, line={"color": "#3F4650", "dash": "dash", "width": 1.5})
    ticks = FINE_TICKS if moved.iloc[0] < FINE else TICKS
    drawn.update_xaxes(
        tickvals=ticks, ticktext=[number(tick, language) for tick in ticks], tickangle=0,
        showgrid=True,
    )  # fmt: skip
    drawn.update_yaxes(
        type="category", categoryorder="array", categoryarray=names[::-1], dtick=1,
        tickfont={"size": 11},
    )  # fmt: skip
    return drawn


def quality_speed(found: Comparison, language: str = "en") -> go.Figure:
    """Each run's ternary arm: quality lost against decode speed-up at the real shape."""
    say = FigureTexts(language)
    title = say("compare.quality_speed.title")
    gap = _values(found, "quality_gap_bits_per_byte", arm="ternary")
    speed = _values(found, "decode_speedup", source="probe")
    if gap is None or speed is None:
        return why_not(say, title, say("compare.no_shared"))
    drawn = figure(say, title, say("axis.speedup"), say("axis.gap"))
    for place, name in enumerate(found.runs):
        drawn.add_scatter(
            x=[speed[name]],
            y=[gap[name]],
            mode="markers",
            name=name,
            marker={"size": 14, "color": RUN_COLOURS[place % len(RUN_COLOURS)]},
            hovertemplate="%{x:.3g}×, %{y:.3g}<extra>%{fullData.name}</extra>",
        )
    drawn.add_vline(x=1, line={"color": "#8A8F98", "dash": "dash", "width": 1})
    drawn.add_hline(y=0, line={"color": "#8A8F98", "dash": "dash", "width": 1})
    return drawn


FIGURES = (ratios, quality_speed)
TABLES = (verdicts, settings, every_figure)
"""For a notebook: what is read before the figures, and after them."""


def _verdict(row: dict[str, object], state: str) -> str:
    """state: of the last run against the first, which the ratio compares as well."""
    if state in ("same", "within intervals"):
        return "same"
    if row["better"] == "neither" or state == "no interval":
        return "neither"
    return "better" if (row["ratio"] > 1) == (row["better"] == "higher") else "worse"  # type: ignore[operator]


def _values(found: Comparison, name: str, **labels: str) -> dict[str, float] | None:
    """The first figure of that name and labels, by run; None where a run has none."""
    for row in found.figures.to_dict("records"):
        own = labels_of(row["labels"])
        fits = all(own.get(key) == value for key, value in labels.items())
        values = {run: row[run] for run in found.runs}
        if row["metric"] == name and fits and pd.notna(list(values.values())).all():
            return values
    return None
