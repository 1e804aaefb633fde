"""Training: the two loss curves at equal tokens, and what became of the weights."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.theme import (
    ARM_COLOURS,
    ARM_SYMBOLS,
    GREY,
    ORANGE,
    SKY,
    STATE_COLOURS,
    UNKNOWN_SYMBOL,
    VERMILION,
    FigureTexts,
    arms_in_order,
    figure,
    thinned,
    why_not,
)
from workbench.records.stage_record import StageRecord
from workbench.wording.text import Texts

MOST_LAYERS = 60
LEAKS_SHOWN = 3
TIME_COLOURS = ("#9CC9E8", SKY, "#5E7FA8", ORANGE, VERMILION)
"""From the first look to the last."""
FLIP_SCALE = [[0, "#F4F5F7"], [0.5, ORANGE], [1, VERMILION]]
SMOOTHED_SHARE = 0.03
"""The running median spans this share of the steps."""


def loss(record: StageRecord, language: str = "en") -> go.Figure:
    """Training loss against tokens, raw and as a running median; phases shaded."""
    say = FigureTexts(language)
    title = say("train_qat.loss.title")
    if "loss" not in record.tables or (rows := record.table("loss")).empty:
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(say, title, say("axis.tokens_million"), say("axis.loss"), height=420)
    for arm in arms_in_order(rows["arm"].unique()):
        own = rows[rows["arm"] == arm].sort_values("step")
        span = max(3, round(SMOOTHED_SHARE * len(own)))
        smooth = own["loss"].rolling(span, min_periods=1, center=True).median()
        own = thinned(own.assign(smooth=smooth))
        tokens, colour = own["tokens"] / 1e6, ARM_COLOURS.get(arm, GREY)
        raw = {"color": colour, "width": 1}
        drawn.add_scatter(
            x=tokens, y=own["loss"], mode="lines", line=raw, opacity=0.25,
            showlegend=False, legendgroup=arm, hoverinfo="skip",
        )  # fmt: skip
        drawn.add_scatter(
            x=tokens, y=own["smooth"], mode="lines", line={"color": colour, "width": 2.5},
            name=say.label("arm", arm), legendgroup=arm, customdata=own["step"],
            hovertemplate="%{customdata}: %{y:.4g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    _shade_phases(drawn, rows, say)
    return drawn


def evaluations(record: StageRecord, language: str = "en") -> go.Figure:
    """Held-out bits per byte during training, by arm and by the weights judged."""
    say = FigureTexts(language)
    title = say("train_qat.evaluations.title")
    if "evaluations" not in record.tables or (rows := record.table("evaluations")).empty:
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(say, title, say("axis.step"), say("axis.bits_per_byte"))
    for arm in arms_in_order(rows["arm"].unique()):
        for place, weights in enumerate(rows.loc[rows["arm"] == arm, "weights"].unique()):
            own = rows[(rows["arm"] == arm) & (rows["weights"] == weights)].sort_values("step")
            words = say.get(f"weights.{weights}", str(weights).replace("_", " "))
            drawn.add_scatter(
                x=own["step"],
                y=own["bits_per_byte"],
                mode="lines+markers",
                name=f"{say.label('arm', arm)} · {words}",
                line={
                    "color": ARM_COLOURS.get(arm, GREY),
                    "dash": ("solid", "dot", "dash")[place % 3],
                    "width": 2,
                },
                marker={"symbol": ARM_SYMBOLS.get(arm, UNKNOWN_SYMBOL), "size": 9},
                hovertemplate="%{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
            )
    return drawn


def layers(record: StageRecord, language: str = "en") -> go.Figure:
    """Shares of -1, 0 and +1 in each ternary layer at the last step recorded."""
    say = FigureTexts(language)
    title = say("train_qat.layers.title")
    if "layers" not in record.tables or (rows := record.table("layers")).empty:
        return why_not(say, title, say("fig.no_rows"))
    last = rows[rows["step"] == rows["step"].max()]
    shown = last.head(MOST_LAYERS)
    drawn = figure(say, title, say("axis.share_percent"), height=170 + 18 * len(shown))
    for state, name in (("minus", "−1"), ("zero", "0"), ("plus", "+1")):
        drawn.add_bar(
            y=short_names(shown["layer"]),
            x=100 * shown[f"share_{state}"],
            orientation="h",
            name=name,
            marker_color=STATE_COLOURS[state],
            hovertemplate="%{y}: %{x:.1f} %<extra>%{fullData.name}</extra>",
        )
    drawn.update_layout(barmode="stack", bargap=0.15)
    drawn.update_yaxes(autorange="reversed", tickfont={"size": 11}, type="category", dtick=1)
    drawn.update_xaxes(range=[0, 100])
    if len(last) > len(shown):
        _footnote(drawn, say("fig.first_layers", shown=len(shown), all=len(last)))
    return drawn


def flips(record: StageRecord, language: str = "en") -> go.Figure:
    """Share of the weights that changed their ternary value since the look before, by layer."""
    say = FigureTexts(language)
    title = say("train_qat.flips.title")
    if "layers" not in record.tables or (rows := record.table("layers")).empty:
        return why_not(say, title, say("fig.no_rows"))
    rows = rows.dropna(subset=["flip_rate"])
    if rows.empty:
        return why_not(say, title, say("fig.no_rows"))
    every = rows["layer"].drop_duplicates()
    shown = every.head(MOST_LAYERS)
    by_layer = 100 * rows.pivot(index="layer", columns="step", values="flip_rate").loc[shown]
    drawn = figure(say, title, say("axis.step"), height=130 + 18 * len(shown))
    drawn.add_heatmap(
        x=[str(step) for step in by_layer.columns],
        y=short_names(shown),
        z=by_layer.to_numpy(),
        zmin=0,
        zmax=max(1.0, float(by_layer.max(axis=None))),
        colorscale=FLIP_SCALE,
        colorbar={"title": {"text": say("axis.flip_percent"), "side": "right"}, "thickness": 12},
        hovertemplate="%{y}, %{x}: %{z:.3g} %<extra></extra>",
    )
    drawn.update_layout(margin={"t": 56})  # no legend
    drawn.update_xaxes(type="category")
    drawn.update_yaxes(autorange="reversed", tickfont={"size": 11}, type="category", dtick=1)
    if len(every) > len(shown):
        _footnote(drawn, say("fig.first_layers", shown=len(shown), all=len(every)))
    return drawn


def histograms(
    record: StageRecord, language: str = "en", *, layer: str | None = None, step: int | None = None
) -> go.Figure:
    """Master weights of all ternary layers over time: the first look, the last, some between.

    layer: only this one; step: only the look after this one.

    They are in units of each layer's scale, so the bins are the same in all layers.
    """
    say = FigureTexts(language)
    title = say("train_qat.histograms.title")
    if "histograms" not in record.tables or (rows := record.table("histograms")).empty:
        return why_not(say, title, say("fig.no_rows"))
    master = rows[rows["kind"] == "master"]
    master = master if layer is None else master[master["layer"] == layer]
    master = master if step is None else master[master["step"] == step]
    own = master.groupby(["step", "left", "right"], as_index=False)["count"].sum()
    if own.empty:
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(say, title, say("axis.weight"), say("axis.density"))
    looks = sorted(own["step"].unique())
    places = np.unique(np.linspace(0, len(looks) - 1, len(TIME_COLOURS)).round().astype(int))
    first = len(TIME_COLOURS) - len(places)
    for place, colour in zip(places, TIME_COLOURS[first:], strict=True):
        at = own[own["step"] == looks[place]].sort_values("left")
        width = at["right"] - at["left"]
        density = at["count"] / (at["count"].sum() * width)
        is_end = place in (0, len(looks) - 1)
        drawn.add_scatter(
            x=(at["left"] + at["right"]) / 2, y=density, mode="lines",
            line={"color": colour, "shape": "hvh", "width": 2.4 if is_end else 1.3},
            name=say("fig.at_step", step=looks[place]),
            hovertemplate="%{x:.3g}: %{y:.3g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    return drawn


def leaks(record: StageRecord, language: str = "en") -> go.Figure:
    """The held-out documents that share most with the training text, as a table."""
    say = FigureTexts(language)
    title = say("train_qat.leaks.title")
    if "leaks" not in record.tables or (rows := record.table("leaks")).empty:
        return why_not(say, title, say("fig.no_rows"))
    found = rows[rows["leaked"] > 0].head(LEAKS_SHOWN)
    if found.empty:
        return why_not(say, title, say("train_qat.leaks.none"))
    columns = ("document", "learned_in", "share", "judged", "passage")
    judged = [say(f"train_qat.leaks.{'no' if out else 'yes'}") for out in found["left_out"]]
    cells = [
        [html.escape(name) for name in found["document"]],
        [html.escape(name) for name in found["learned_in"]],
        [f"{share:.0%}" for share in found["share"]],
        judged,
        [html.escape(" ".join(passage.split())) for passage in found["passage"]],
    ]
    drawn = figure(say, title, height=360)
    drawn.add_table(
        header={"values": [say(f"train_qat.leaks.{name}") for name in columns], "align": "left"},
        cells={"values": cells, "align": "left"}, columnwidth=[3, 3, 1, 1, 6],
    )  # fmt: skip
    return drawn


FIGURES = (loss, evaluations, flips, histograms, layers, leaks)


def short_names(names: pd.Series) -> list[str]:
    """``model.layers.3.self_attn.q_proj`` as ``3 · q_proj``; other names as they are."""
    return [short_name(name) for name in names]


def short_name(name: str) -> str:
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return name
    block, rest = parts[numbers[0]], parts[numbers[0] + 1 :]
    return f"{block} · {rest[-1]}" if rest else block


def _shade_phases(drawn: go.Figure, rows: pd.DataFrame, say: Texts) -> None:
    """A band and a name for each phase of the ternary arm's training."""
    arm = "ternary" if (rows["arm"] == "ternary").any() else rows["arm"].iloc[0]
    own = rows[rows["arm"] == arm].sort_values("step")
    changes = np.flatnonzero(own["phase"].to_numpy()[1:] != own["phase"].to_numpy()[:-1]) + 1
    starts = [0, *changes.tolist()]
    for place, (first, end) in enumerate(zip(starts, [*starts[1:], len(own)], strict=True)):
        left = own["tokens"].iloc[first] if first else 0
        right = own["tokens"].iloc[min(end, len(own) - 1)]
        phase = str(own["phase"].iloc[first])
        drawn.add_vrect(
            x0=left / 1e6,
            x1=right / 1e6,
            fillcolor="#6B7280",
            opacity=(0.0, 0.08)[place % 2],
            line_width=0,
            layer="below",
            annotation={
                "text": say.get(f"train_phase.{phase}", phase.replace("_", " ")),
                "font": {"size": 11, "color": "#6B7280"},
                "yshift": -14 * (place % 2),  # names of short phases would run into each other
            },
            annotation_position="top left",
        )


def _footnote(drawn: go.Figure, text: str) -> None:
    drawn.add_annotation(
        text=text, showarrow=False, x=1, y=1, xref="paper", yref="paper", yanchor="bottom",
        xanchor="right", font={"size": 11, "color": "#6B7280"},
    )  # fmt: skip
