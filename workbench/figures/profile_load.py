"""Load profile: when requests come, and how long their prompts and answers are."""

from __future__ import annotations

from collections.abc import Sequence

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
from workbench.load.piece import Piece, PieceKind
from workbench.load.profile import LoadProfile
from workbench.load.store import Store
from workbench.records.run import open_folder
from workbench.records.stage_record import StageRecord
from workbench.wording.numbers import number

Within = Sequence[float] | None
"""Begin and end of a time window, seconds after the load's first request; None: all of it."""
MOST_REQUESTS = 200_000
MOST_BARS = 300
"""More windows than this are averaged in groups: a bar must stay wider than a pixel."""


def rate(
    record: StageRecord,
    language: str = "en",
    *,
    within_s: Within = None,
    classes: Sequence[str] | None = None,
    piece: PieceKind | None = None,
) -> go.Figure:
    """Requests per second over time, classes stacked; shaded, the piece of that kind."""
    say = FigureTexts(language)
    title = say("profile_load.rate.title")
    if "windows" not in record.tables or (rows := record.table("windows")).empty:
        return why_not(say, title, say("fig.no_rows"))
    rows = _chosen(rows, within_s, classes)
    if rows.empty:
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
    if piece:
        found = _piece(record, piece)
        drawn.add_vrect(
            x0=found.start_s / scale, x1=(found.start_s + found.length_s) / scale,
            fillcolor=BLUE, opacity=0.18, line_width=0,
            annotation={"text": say("profile_load.piece"), "font": {"size": 11}},
            annotation_position="top left",
        )  # fmt: skip
    return drawn


def lengths(
    record: StageRecord,
    language: str = "en",
    *,
    within_s: Within = None,
    classes: Sequence[str] | None = None,
    piece: PieceKind | None = None,
) -> go.Figure:
    """Share of requests whose prompt, or output, is at most so long; of a piece, or of all."""
    say = FigureTexts(language)
    title = say("profile_load.lengths.title")
    if "requests" not in record.tables or (rows := _some(record, within_s, classes, piece)).empty:
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


def shapes(
    record: StageRecord,
    language: str = "en",
    *,
    within_s: Within = None,
    classes: Sequence[str] | None = None,
    piece: PieceKind | None = None,
) -> go.Figure:
    """Each request by the length of its prompt and of its output; of a piece, or of all."""
    say = FigureTexts(language)
    title = say("profile_load.shapes.title")
    if "requests" not in record.tables or (rows := _some(record, within_s, classes, piece)).empty:
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


def likeness(
    record: StageRecord, language: str = "en", title: str = "profile_load.likeness.title"
) -> go.Figure:
    """The load, requests drawn from its profile and a piece of it, in three panels: rates of the
    windows, Q-Q of the gaps, index of dispersion by the width of the windows."""
    say = FigureTexts(language)
    title = say(title)
    if not _curves(record, "gap_cv"):
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(say, title, height=440)
    named: set[str] = set()
    for column, (name, x, y) in enumerate(PANELS, start=1):
        start = (column - 1) * (PANEL + GUTTER)
        number_ = "" if column == 1 else str(column)
        axes = {"gridcolor": "#E4E7EB", "linecolor": "#B8BDC6", "ticks": "outside"}
        kind = "linear" if name == "window_rate" else "log"
        drawn.update_layout(
            {
                f"xaxis{number_}": {
                    **axes, "domain": [start, start + PANEL], "anchor": f"y{number_}",
                    "title": {"text": say(x)}, "type": kind, "showgrid": False,
                },
                f"yaxis{number_}": {
                    **axes, "anchor": f"x{number_}", "title": {"text": say(y)}, "type": kind,
                },
            }
        )  # fmt: skip
        for load, line in _lines(record, name).items():
            drawn.add_scatter(
                x=line["x"],
                y=line["y"],
                xaxis=f"x{number_}",
                yaxis=f"y{number_}",
                mode="lines",
                name=_named(say, record, load),
                legendgroup=load,
                showlegend=load not in named,  # a short piece has no windows for the first panel
                line={
                    "color": LOAD_COLOURS[load],
                    "width": 4 if load == "whole" else 2,
                    "dash": "dash" if load == "generated" else "solid",
                },
                hovertemplate="%{x:.3g}: %{y:.3g}<extra>%{fullData.name}</extra>",
            )
            named.add(load)
    return drawn


FIGURES = (rate, lengths, shapes, likeness)
LOAD_COLOURS = {"whole": GREY, "generated": VERMILION, "piece": BLUE, "replayed": BLUE}
PANELS = (
    ("window_rate", "axis.share_of_windows", "axis.requests_per_s"),
    ("gap", "axis.gap_whole_s", "axis.gap_s"),
    ("dispersion", "axis.window_s", "axis.dispersion"),
)
PANEL, GUTTER = 0.26, 0.11
"""Width of a panel and of the room between two, as shares of the figure."""


def _lines(record: StageRecord, name: str) -> dict[str, pd.DataFrame]:
    """Load -> the points of one panel; gaps stand against those of the whole load."""
    curves = _curves(record, name)
    if name == "window_rate":
        return {load: curve.assign(x=100 * curve["x"]) for load, curve in curves.items()}
    if name == "gap" and "whole" in curves:
        own = curves["whole"].set_index("x")["y"]
        curves = {
            load: curve[curve["x"].isin(own.index)].assign(x=lambda c: own[c["x"]].to_numpy())
            for load, curve in curves.items()
        }
    return {load: curve[(curve["x"] > 0) & (curve["y"] > 0)] for load, curve in curves.items()}


def _curves(record: StageRecord, name: str) -> dict[str, pd.DataFrame]:
    """Load -> its curve of one figure; empty where the record has none."""
    if "likeness" not in record.tables:
        return {}
    rows = record.table("likeness")
    rows = rows[rows["figure"] == name]
    return {load: rows[rows["load"] == load] for load in LOAD_COLOURS if load in set(rows["load"])}


def _named(say: FigureTexts, record: StageRecord, load: str) -> str:
    """The load in words, with the CV of its gaps."""
    cv = number(float(_curves(record, "gap_cv")[load]["y"].iloc[0]), say.language)
    return f"{say(f'profile_load.{load}')} (CV {cv})"


def _some(
    record: StageRecord, within_s: Within, classes: Sequence[str] | None, piece: PieceKind | None
) -> pd.DataFrame:
    """The requests, of a long load as many as a figure can show; or those of a piece."""
    if piece:
        return _chosen(_piece(record, piece).requests, None, classes)
    rows = Store(record.folder / record.tables["requests"]).sample(MOST_REQUESTS, seed=0)
    return _chosen(rows, within_s, classes)


def _piece(record: StageRecord, kind: PieceKind) -> Piece:
    """The piece that a replay as long as this run's would take."""
    pilot = open_folder(record.folder.parents[1]).resolved().pilot.deploy_rollback
    length_s = pilot.duration_s * (pilot.speedup or 1.0)
    return LoadProfile.from_record(record).piece(kind, length_s, 0.0)


def _chosen(rows: pd.DataFrame, within_s: Within, classes: Sequence[str] | None) -> pd.DataFrame:
    if within_s is not None:
        rows = rows[rows["start_s"].between(*within_s)]
    return rows if classes is None else rows[rows["class"].isin(classes)]


def _only_window_s(rows: pd.DataFrame) -> float:
    """Length of a lone window, from its number of requests and their rate."""
    busy = rows[rows["rate_per_s"] > 0].iloc[:1]
    return float((busy["requests"] / busy["rate_per_s"]).sum()) or 60.0
