"""Size study: the gap at each size with its trend, and the losses it is made of."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from workbench.figures.theme import (
    ARM_COLOURS,
    ARM_SYMBOLS,
    FigureTexts,
    error_bars,
    figure,
    reason_for,
    valued,
    why_not,
)
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord


def gaps(record: StageRecord, language: str = "en") -> go.Figure:
    """The gap by number of parameters, and the line whose slope is the trend."""
    say = FigureTexts(language)
    title = say("study_size.gaps.title")
    found = valued(record, "gap_bits_per_byte")
    if not found:
        return why_not(say, title, reason_for(record, "gap_bits_per_byte") or say("fig.no_rows"))
    sizes = _parameters(record, found)
    drawn = figure(say, title, say("axis.parameters"), say("axis.gap"), log="x")
    drawn.add_scatter(
        x=sizes / 1e6,
        y=[metric.value for metric in found],
        mode="markers",
        name=say.label("arm", "ternary"),
        marker={
            "symbol": ARM_SYMBOLS["ternary"], "size": 11, "color": ARM_COLOURS["ternary"],
        },
        error_y=error_bars(found),
        hovertemplate="%{x:.3g}: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    for trend in valued(record, "gap_trend"):
        doublings = np.log2(sizes) - np.log2(sizes).mean()
        middle = np.mean([metric.value for metric in found])
        drawn.add_scatter(
            x=sizes / 1e6, y=middle + trend.value * doublings, mode="lines",
            name=say("study_size.trend"), line={"color": "#3F4650", "dash": "dash", "width": 1.5},
            hoverinfo="skip",
        )  # fmt: skip
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def losses(record: StageRecord, language: str = "en") -> go.Figure:
    """Bits per byte of both arms by number of parameters."""
    say = FigureTexts(language)
    title = say("study_size.losses.title")
    found = valued(record, "bits_per_byte")
    if not found:
        return why_not(say, title, reason_for(record, "bits_per_byte") or say("fig.no_rows"))
    drawn = figure(say, title, say("axis.parameters"), say("axis.bits_per_byte"), log="x")
    for arm in ("full_precision", "ternary"):
        own = [metric for metric in found if metric.labels["arm"] == arm]
        drawn.add_scatter(
            x=_parameters(record, own) / 1e6,
            y=[metric.value for metric in own],
            mode="lines+markers",
            name=say.label("arm", arm),
            line={"color": ARM_COLOURS[arm], "width": 2},
            marker={"symbol": ARM_SYMBOLS[arm], "size": 10},
            hovertemplate="%{x:.3g}: %{y:.4g}<extra>%{fullData.name}</extra>",
        )
    return drawn


FIGURES = (gaps, losses)


def _parameters(record: StageRecord, metrics: list[Metric]) -> np.ndarray:
    """Parameters of the networks whose widths the metrics name."""
    rows = record.table("arms").drop_duplicates("width").set_index("width")["parameters"]
    return np.array([rows[int(metric.labels["width"])] for metric in metrics], float)
