"""Recipe study: what each way of training loses against full precision, and how it got there."""

from __future__ import annotations

import plotly.graph_objects as go

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
    thinned,
    valued,
    why_not,
)
from workbench.records.stage_record import StageRecord

COLOURS = {
    "full_precision": BLUE, "default": VERMILION, "lambda_warmup": ORANGE,
    "straight_through": SKY, "post_training": PURPLE, "without_teacher": GREEN,
    "row_scales": GREY,
}  # fmt: skip
SMOOTHED_SHARE = 0.05
"""The running median spans this share of the rows."""


def gaps(record: StageRecord, language: str = "en") -> go.Figure:
    """Gap of each arm to full precision; lower is better."""
    say = FigureTexts(language)
    title = say("study_recipe.gaps.title")
    found = valued(record, "gap_bits_per_byte")
    if not found:
        reason = reason_for(record, "gap_bits_per_byte")
        return why_not(say, title, reason or say("fig.no_rows"))
    found = sorted(found, key=lambda metric: -metric.value)
    drawn = figure(say, title, say("axis.gap"), height=150 + 44 * len(found))
    drawn.add_scatter(
        x=[metric.value for metric in found],
        y=[say.label("arm", metric.labels["arm"]) for metric in found],
        mode="markers",
        marker={"size": 12, "color": [COLOURS.get(m.labels["arm"], GREY) for m in found]},
        error_x=error_bars(found),
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
    )
    drawn.add_vline(x=0, line={"color": "#3F4650", "dash": "dash", "width": 1.5})
    drawn.update_xaxes(showgrid=True)
    drawn.update_yaxes(type="category", autorange="reversed", dtick=1)
    return drawn


def ratios(record: StageRecord, language: str = "en") -> go.Figure:
    """Gap of each trained arm over the gap of the public recipe."""
    say = FigureTexts(language)
    title = say("study_recipe.ratios.title")
    found = [
        m
        for m in valued(record, "gap_over_lambda_warmup_gap")
        if m.labels.get("arm") != "post_training"
    ]
    if not found:
        reason = reason_for(record, "gap_over_lambda_warmup_gap")
        return why_not(say, title, reason or say("fig.no_rows"))
    drawn = figure(say, title, say("axis.gap_ratio"), height=170 + 44 * len(found))
    names = [_who(say, metric.labels) for metric in found]
    drawn.add_scatter(
        x=[metric.value for metric in found],
        y=names,
        mode="markers",
        marker={
            "size": 12,
            "color": [COLOURS.get(m.labels.get("arm", "default"), GREY) for m in found],
        },
        error_x=error_bars(found),
        hovertemplate="%{y}: %{x:.3g}<extra></extra>",
    )
    for place, dash in ((1.0, "dash"), (0.6, "dot")):
        drawn.add_vline(x=place, line={"color": "#3F4650", "dash": dash, "width": 1.5})
    drawn.update_xaxes(showgrid=True)
    drawn.update_yaxes(type="category", autorange="reversed", dtick=1)
    return drawn


def loss(record: StageRecord, language: str = "en") -> go.Figure:
    """Training loss against tokens of the first seed, as a running median."""
    return running_losses(record, FigureTexts(language), "study_recipe.loss.title", COLOURS)


def running_losses(
    record: StageRecord, say: FigureTexts, title_key: str, colours: dict[str, str]
) -> go.Figure:
    """Running medians of the training losses of a study's first seed, by arm."""
    title = say(title_key)
    if "loss" not in record.tables or (rows := record.table("loss")).empty:
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(say, title, say("axis.tokens_million"), say("axis.loss"), height=420)
    rows = rows[rows["seed"] == rows["seed"].iloc[0]]
    for arm in rows["arm"].unique():
        own = rows[rows["arm"] == arm].sort_values("step")
        span = max(3, round(SMOOTHED_SHARE * len(own)))
        smooth = own["loss"].rolling(span, min_periods=1, center=True).median()
        own = thinned(own.assign(smooth=smooth))
        drawn.add_scatter(
            x=own["tokens"] / 1e6,
            y=own["smooth"],
            mode="lines",
            line={"color": colours.get(arm, GREY), "width": 2.2},
            name=say.label("arm", arm),
            hovertemplate="%{x:.3g}: %{y:.4g}<extra>%{fullData.name}</extra>",
        )
    return drawn


FIGURES = (gaps, ratios, loss)


def _who(say: FigureTexts, labels: dict[str, str]) -> str:
    """The headline has no arm: it is the default's; a seed's own figure says which."""
    arm = say.label("arm", labels.get("arm", "default"))
    return f"{arm}, {say('study_recipe.seed', seed=labels['seed'])}" if "seed" in labels else arm
