"""A/B: quality, speed, throughput, memory and energy of the arms in one session."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import plotly.graph_objects as go

from workbench.figures.measure_ab_load import load_energy, under_load, under_load_table
from workbench.figures.measure_ab_own import accuracy, answers
from workbench.figures.theme import (
    ARM_COLOURS,
    GREY,
    FigureTexts,
    arm_marker,
    arms_in_order,
    draw_arms,
    error_bars,
    figure,
    log_axis,
    reason_for,
    valued,
    why_not,
    wrapped,
)
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.wording.text import Texts


def quality(record: StageRecord, language: str = "en") -> go.Figure:
    """Held-out bits per byte of each arm, with the bootstrap interval over documents."""
    say = FigureTexts(language)
    title = say("measure_ab.quality.title")
    rows = valued(record, "bits_per_byte")
    if not rows:
        return why_not(say, title, reason_for(record, "bits_per_byte"))
    drawn = figure(say, title, say("axis.bits_per_byte"), height=140 + 48 * len(rows))
    for arm in arms_in_order([m.labels.get("arm", "") for m in rows]):
        own = [m for m in rows if m.labels.get("arm", "") == arm]
        drawn.add_scatter(
            x=[m.value for m in own],
            y=[wrapped(say.label("arm", arm))] * len(own),
            error_x=error_bars(own),
            mode="markers",
            marker=arm_marker(arm, 13),
            showlegend=False,
            customdata=[m.n for m in own],
            hovertemplate="%{x:.4g} · n = %{customdata}<extra></extra>",
        )
    drawn.update_yaxes(autorange="reversed", type="category")
    drawn.update_xaxes(showgrid=True)
    return drawn


def speed(record: StageRecord, language: str = "en") -> go.Figure:
    """Speed-up of each arm and request class; grey: what this session cannot tell from 1."""
    say = FigureTexts(language)
    title = say("measure_ab.speed.title")
    rows = valued(record, "speedup")
    if not rows:
        return why_not(say, title, reason_for(record, "speedup"))
    classes = list(dict.fromkeys(m.labels.get("class", "") for m in rows))
    drawn = figure(say, title, say("axis.speedup"), height=170 + 56 * len(classes))
    draw_arms(drawn, say, rows, partial(_class_of, say), "%{x:.3g}×", 12)
    effects = valued(record, "smallest_visible_effect")
    seen = [abs(m.value or 0.0) for m in effects if m.labels.get("class") in classes]
    if seen:
        widest = max(seen)
        drawn.add_vrect(
            x0=1 - widest, x1=1 + widest, fillcolor="#6B7280", opacity=0.15, line_width=0
        )
    drawn.add_vline(x=1, line={"color": "#3F4650", "dash": "dash", "width": 1.5})
    drawn.update_yaxes(autorange="reversed", type="category")
    log_axis(drawn, "x", rows, language)
    return drawn


def throughput(record: StageRecord, language: str = "en") -> go.Figure:
    """Decoded tokens per second of all sequences together, by batch size."""
    say = FigureTexts(language)
    title = say("measure_ab.throughput.title")
    rows = valued(record, "decode_tokens_per_s")
    if not rows:
        return why_not(say, title, reason_for(record, "decode_tokens_per_s"))
    drawn = figure(say, title, say("axis.batch"), say("axis.tokens_per_s"))
    for arm in arms_in_order([m.labels.get("arm", "") for m in rows]):
        own = [m for m in rows if m.labels.get("arm", "") == arm]
        own.sort(key=lambda m: int(m.labels.get("batch", 1)))
        drawn.add_scatter(
            x=[m.labels.get("batch", "1") for m in own],
            y=[m.value for m in own],
            error_y=error_bars(own),
            mode="lines+markers",
            name=say.label("arm", arm),
            line={"color": ARM_COLOURS.get(arm, GREY), "width": 2},
            marker=arm_marker(arm, 10),
            hovertemplate="%{y:.4g}<extra>%{fullData.name}</extra>",
        )
    batches = sorted({int(m.labels.get("batch", 1)) for m in rows})
    drawn.update_xaxes(
        type="category", categoryorder="array", categoryarray=[str(b) for b in batches]
    )
    drawn.update_yaxes(rangemode="tozero")
    log_axis(drawn, "y", rows, language)
    return drawn


def memory(record: StageRecord, language: str = "en") -> go.Figure:
    """Memory of each arm's model."""
    return _bars(record, "model_memory_mb", "memory", "axis.memory_mb", language)


def energy(record: StageRecord, language: str = "en") -> go.Figure:
    """Metered energy per output token, or why there is none."""
    return _bars(
        record, "energy_j_per_token", "energy", "axis.energy_token", language, source="trained"
    )


FIGURES = (quality, speed, under_load, load_energy, throughput, memory, energy)
TABLES = (under_load_table, answers, accuracy)
"""For a notebook; the report has its own tables."""


def _bars(
    record: StageRecord, name: str, key: str, axis: str, language: str, **labels: str
) -> go.Figure:
    say = FigureTexts(language)
    title = say(f"measure_ab.{key}.title")
    rows: Sequence[Metric] = valued(record, name, **labels)
    if not rows:
        return why_not(say, title, reason_for(record, name, **labels))
    drawn = figure(say, title, say(axis), height=140 + 46 * len(rows))
    for arm in arms_in_order([m.labels.get("arm", "") for m in rows]):
        own = [m for m in rows if m.labels.get("arm", "") == arm]
        drawn.add_bar(
            x=[m.value for m in own],
            y=[wrapped(_name(say, m)) for m in own],
            error_x=error_bars(own),
            orientation="h",
            marker_color=ARM_COLOURS.get(arm, GREY),
            showlegend=False,
            hovertemplate="%{x:.4g}<extra>%{y}</extra>",
        )
    drawn.update_layout(barmode="overlay")
    drawn.update_yaxes(autorange="reversed", type="category")
    drawn.update_xaxes(showgrid=True)
    log_axis(drawn, "x", rows, language)
    return drawn


def _name(say: Texts, metric: Metric) -> str:
    return say.labels({k: v for k, v in metric.labels.items() if k != "source"})


def _class_of(say: Texts, metric: Metric) -> str:
    return wrapped(say.label("class", metric.labels.get("class", "")))
