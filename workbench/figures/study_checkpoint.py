"""Checkpoint study: what each way loses against the checkpoint as it came, and each part's gain."""

from __future__ import annotations

import plotly.graph_objects as go

from workbench.figures.study_recipe import running_losses
from workbench.figures.theme import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    FigureTexts,
    error_bars,
    figure,
    reason_for,
    valued,
    why_not,
)
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord

COLOURS = {
    "checkpoint": BLUE, "default": VERMILION, "lambda_warmup": ORANGE, "rotation": SKY,
    "post_training": PURPLE, "without_teacher": GREEN,
}  # fmt: skip


def gaps(record: StageRecord, language: str = "en") -> go.Figure:
    """Gap of each arm to the checkpoint as it came; lower is better."""
    found = valued(record, "gap_bits_per_byte")
    return _by_arm(record, language, "gaps", "gap_bits_per_byte", "axis.gap", found, (0.0,))


def parts(record: StageRecord, language: str = "en") -> go.Figure:
    """What the recipe loses with one part of it changed; right of the line the part pays."""
    name = "loss_over_recipe_bits_per_byte"
    return _by_arm(record, language, "parts", name, "axis.gap", valued(record, name), (0.0,))


def ratios(record: StageRecord, language: str = "en") -> go.Figure:
    """Gap of each trained arm over that of lambda warm-up."""
    name = "gap_over_lambda_warmup_gap"
    found = [m for m in valued(record, name) if "seed" not in m.labels]
    return _by_arm(record, language, "ratios", name, "axis.gap_ratio", found, (1.0, 0.6))


def loss(record: StageRecord, language: str = "en") -> go.Figure:
    """Training loss against tokens of the first seed, as a running median."""
    return running_losses(record, FigureTexts(language), "study_checkpoint.loss.title", COLOURS)


FIGURES = (gaps, parts, ratios, loss)


def _by_arm(
    record: StageRecord,
    language: str,
    name: str,
    metric: str,
    axis: str,
    found: list[Metric],
    lines: tuple[float, ...],
) -> go.Figure:
    """A dot with its interval for each arm, the worst first; the headline's arm is the recipe."""
    say = FigureTexts(language)
    title = say(f"study_checkpoint.{name}.title")
    if not found:
        return why_not(say, title, reason_for(record, metric) or say("fig.no_rows"))
    found = sorted(found, key=lambda each: -each.value)
    arms = [each.labels.get("arm", "default") for each in found]
    drawn = figure(say, title, say(axis), height=160 + 44 * len(found))
    drawn.add_scatter(
        x=[each.value for each in found],
        y=[say.label("arm", arm) for arm in arms],
        mode="markers",
        marker={"size": 12, "color": [COLOURS.get(arm, GREY) for arm in arms]},
        error_x=error_bars(found),
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
    )
    for place, dash in zip(lines, ("dash", "dot"), strict=False):
        drawn.add_vline(x=place, line={"color": "#3F4650", "dash": dash, "width": 1.5})
    drawn.update_xaxes(showgrid=True)
    drawn.update_yaxes(type="category", autorange="reversed", dtick=1)
    return drawn
