"""Parity study: quality against width, and against memory."""

from __future__ import annotations

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
from workbench.records.stage_record import StageRecord
from workbench.wording.numbers import number


def widths(record: StageRecord, language: str = "en") -> go.Figure:
    """Bits per byte of the ternary networks by width, full precision as a line to cross."""
    say = FigureTexts(language)
    title = say("study_parity.widths.title")
    found = valued(record, "bits_per_byte")
    if not found:
        return why_not(say, title, reason_for(record, "bits_per_byte") or say("fig.no_rows"))
    drawn = figure(say, title, say("axis.width"), say("axis.bits_per_byte"))
    for arm in ("full_precision", "ternary"):
        own = [metric for metric in found if metric.labels["arm"] == arm]
        drawn.add_scatter(
            x=[int(metric.labels["width"]) for metric in own],
            y=[metric.value for metric in own],
            mode="lines+markers",
            name=say.label("arm", arm),
            line={"color": ARM_COLOURS[arm], "width": 2},
            marker={"symbol": ARM_SYMBOLS[arm], "size": 10},
            hovertemplate="%{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
        )
        if arm == "full_precision":
            line = {"color": ARM_COLOURS[arm], "dash": "dash", "width": 1.5}
            drawn.add_hline(y=own[0].value, line=line)
    for factor in valued(record, "parity_width_factor"):
        full = next(m for m in found if m.labels["arm"] == "full_precision")
        _mark(drawn, float(full.labels["width"]) * factor.value, factor.value, say)
    return drawn


def gaps(record: StageRecord, language: str = "en") -> go.Figure:
    """The gap to full precision by width, with its interval over documents."""
    say = FigureTexts(language)
    title = say("study_parity.gaps.title")
    found = valued(record, "gap_bits_per_byte")
    if not found:
        return why_not(say, title, reason_for(record, "gap_bits_per_byte") or say("fig.no_rows"))
    drawn = figure(say, title, say("axis.width"), say("axis.gap"))
    drawn.add_scatter(
        x=[int(metric.labels["width"]) for metric in found],
        y=[metric.value for metric in found],
        mode="lines+markers",
        name=say.label("arm", "ternary"),
        line={"color": ARM_COLOURS["ternary"], "width": 2},
        marker={"symbol": ARM_SYMBOLS["ternary"], "size": 10},
        error_y=error_bars(found),
        hovertemplate="%{x}: %{y:.4g}<extra></extra>",
    )
    drawn.add_hline(y=0, line={"color": ARM_COLOURS["full_precision"], "dash": "dash"})
    return drawn


def memory(record: StageRecord, language: str = "en") -> go.Figure:
    """Bits per byte against the bytes of the artefact, both arms."""
    say = FigureTexts(language)
    title = say("study_parity.memory.title")
    if "arms" not in record.tables or (rows := record.table("arms")).empty:
        return why_not(say, title, say("fig.no_rows"))
    rows = rows[rows["weights"] == "trained"]
    means = rows.groupby(["kind", "width"], as_index=False)[["model_bytes", "bits_per_byte"]].mean()
    drawn = figure(say, title, say("axis.size_mb"), say("axis.bits_per_byte"))
    for arm in ("full_precision", "ternary"):
        own = means[means["kind"] == arm].sort_values("width")
        drawn.add_scatter(
            x=own["model_bytes"] / 1e6,
            y=own["bits_per_byte"],
            mode="lines+markers",
            name=say.label("arm", arm),
            line={"color": ARM_COLOURS[arm], "width": 2},
            marker={"symbol": ARM_SYMBOLS[arm], "size": 10},
            customdata=own["width"],
            hovertemplate="%{customdata}: %{x:.3g} MB, %{y:.4g}<extra>%{fullData.name}</extra>",
        )
    drawn.update_xaxes(rangemode="tozero")
    return drawn


FIGURES = (widths, gaps, memory)


def _mark(drawn: go.Figure, width: float, factor: float, say: FigureTexts) -> None:
    text = say("study_parity.parity", factor=f"{number(round(factor, 2), say.language)}")
    drawn.add_vline(
        x=width, line={"color": "#3F4650", "dash": "dot", "width": 1.5},
        annotation={"text": text, "font": {"size": 12}}, annotation_position="top right",
    )  # fmt: skip
