"""Hybrid plan: what each layer loses when it is made coarse, and what was decided."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.hybrid_plan_front import front
from workbench.figures.theme import (
    GREY,
    PRECISION_COLOURS,
    UNKNOWN_SYMBOL,
    FigureTexts,
    figure,
    interval_bars,
    why_not,
)
from workbench.figures.train_qat import short_name, short_names
from workbench.records.stage_record import StageRecord
from workbench.wording.numbers import with_interval
from workbench.wording.reasons import reason_words

MOST_LAYERS = 40
SYMBOLS = {
    "ternary": "diamond",
    "int8": "square",
    "int4": "triangle-down",
    "high_precision": "circle",
}


def sensitivity(record: StageRecord, language: str = "en") -> go.Figure:
    """What one layer in another precision does to quality; the strongest effects first."""
    say = FigureTexts(language)
    title = say("hybrid_plan.sensitivity.title")
    if "sensitivity" not in record.tables or (rows := record.table("sensitivity")).empty:
        return why_not(say, title, say("fig.no_rows"))
    rows = rows[rows["quality_loss"] != 0]  # 0 is the base itself, by definition
    if rows.empty:
        return why_not(say, title, say("fig.no_rows"))
    strength = rows["quality_loss"].abs().groupby(rows["layer"]).max().sort_values(ascending=False)
    shown = list(strength.index[:MOST_LAYERS])
    drawn = figure(say, title, say("axis.quality_loss"), height=170 + 20 * len(shown))
    for precision in _precisions(rows):
        own = rows[(rows["precision"] == precision) & rows["layer"].isin(shown)]
        own = own.set_index("layer").reindex(shown).dropna(subset=["quality_loss"])
        drawn.add_scatter(
            x=own["quality_loss"],
            y=[short_name(name) for name in own.index],
            error_x=_bars(own),
            mode="markers",
            name=say.label("precision", precision),
            marker={
                "color": PRECISION_COLOURS.get(precision, GREY),
                "symbol": SYMBOLS.get(precision, UNKNOWN_SYMBOL),
                "size": 9,
            },
            hovertemplate="%{y}: %{x:.4g}<extra>%{fullData.name}</extra>",
        )
    drawn.add_vline(x=0, line={"color": "#3F4650", "dash": "dash", "width": 1})
    order = [short_name(name) for name in shown]
    drawn.update_yaxes(
        type="category", categoryorder="array", categoryarray=order[::-1], dtick=1,
        tickfont={"size": 11},
    )  # fmt: skip
    drawn.update_xaxes(showgrid=True)
    notes = [say("hybrid_plan.base", arm=say.label("arm", str(b))) for b in _bases(rows)]
    if why := _why_no_interval(record):
        notes.append(reason_words(why, say))
    if len(strength) > len(shown):
        notes.append(say("fig.strongest_layers", shown=len(shown), all=len(strength)))
    if notes:
        drawn.add_annotation(
            text=" · ".join(notes), showarrow=False,
            x=1, y=1, xref="paper", yref="paper", xanchor="right", yanchor="bottom",
            font={"size": 11, "color": "#6B7280"},
        )  # fmt: skip
    return drawn


def sensitivity_table(record: StageRecord, language: str = "en") -> go.Figure:
    """The same in numbers, each with its interval, and what was decided; the strongest first."""
    say = FigureTexts(language)
    title = say("hybrid_plan.sensitivity_table.title")
    if "sensitivity" not in record.tables or (rows := record.table("sensitivity")).empty:
        return why_not(say, title, say("fig.no_rows"))
    rows = rows.assign(
        shown=[
            " ".join(filter(None, with_interval(row.quality_loss, *_ends(row), language)))
            for row in rows.itertuples()
        ]
    )
    strength = rows["quality_loss"].abs().groupby(rows["layer"]).max().sort_values(ascending=False)
    losses = rows.pivot(index="layer", columns="precision", values="shown").loc[strength.index]
    heads, columns = [], []
    for precision in _precisions(rows):
        name = say.label("precision", precision)
        heads.append(say("hybrid_plan.sensitivity_table.loss", precision=name))
        columns.append(losses[precision].fillna("–").tolist())
    if "plan" in record.tables:
        decided = record.table("plan").set_index("layer")["precision"].reindex(strength.index)
        heads.append(say("hybrid_plan.sensitivity_table.decided"))
        columns.append(["–" if pd.isna(p) else say.label("precision", p) for p in decided])
    drawn = figure(say, title, height=min(560, 170 + 26 * len(strength)))
    layers = [html.escape(name) for name in strength.index]
    drawn.add_table(
        header={"values": [say("hybrid_plan.sensitivity_table.layer"), *heads], "align": "left"},
        cells={"values": [layers, *columns], "align": "left", "height": 24},
        columnwidth=[3, *(2 for _ in heads)],
    )
    if why := _why_no_interval(record):
        drawn.add_annotation(
            text=reason_words(why, say), showarrow=False,
            x=1, y=1, xref="paper", yref="paper", xanchor="right", yanchor="bottom",
            font={"size": 11, "color": "#6B7280"},
        )  # fmt: skip
    return drawn


def plan(record: StageRecord, language: str = "en") -> go.Figure:
    """The precision decided for each layer: blocks from left to right, kinds from the top."""
    say = FigureTexts(language)
    title = say("hybrid_plan.plan.title")
    if "plan" not in record.tables or (rows := record.table("plan")).empty:
        return why_not(say, title, say("fig.no_rows"))
    names = pd.Series(short_names(rows["layer"])).str.split(" · ", expand=True)
    numbered = names[0].str.isdigit()
    block = names[0].where(numbered, "–")
    whole = names[0].where(~numbered, say("hybrid_plan.block"))
    kind = names[1].fillna(whole) if 1 in names else whole
    kinds = list(dict.fromkeys(kind))
    drawn = figure(say, title, say("axis.block_number"), height=170 + 34 * len(kinds))
    for precision in _precisions(rows):
        chosen = (rows["precision"] == precision).to_numpy()
        drawn.add_scatter(
            x=block[chosen],
            y=kind[chosen],
            mode="markers",
            name=say.label("precision", precision),
            marker={
                "color": PRECISION_COLOURS.get(precision, GREY),
                "symbol": SYMBOLS.get(precision, UNKNOWN_SYMBOL),
                "size": 17,
                "line": {"width": 0},
            },
            customdata=rows.loc[chosen, ["layer", "quality_loss"]],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.4g}<extra>%{fullData.name}</extra>",
        )
    blocks = sorted({b for b in block if b.isdigit()}, key=int) + (
        ["–"] if "–" in set(block) else []
    )
    drawn.update_xaxes(type="category", categoryorder="array", categoryarray=blocks)
    drawn.update_yaxes(type="category", categoryorder="array", categoryarray=kinds[::-1])
    return drawn


def sizes(record: StageRecord, language: str = "en") -> go.Figure:
    """Bytes of the plan's layers in each precision."""
    say = FigureTexts(language)
    title = say("hybrid_plan.sizes.title")
    if "plan" not in record.tables or (rows := record.table("plan")).empty:
        return why_not(say, title, say("fig.no_rows"))
    by = rows.groupby("precision").agg(size=("size_bytes", "sum"), layers=("layer", "size"))
    order = [p for p in _precisions(rows) if p in by.index]
    drawn = figure(say, title, say("axis.size_mb"), height=130 + 46 * len(order))
    drawn.add_bar(
        x=by.loc[order, "size"] / 1e6,
        y=[say.label("precision", p) for p in order],
        orientation="h",
        marker_color=[PRECISION_COLOURS.get(p, GREY) for p in order],
        text=[say("hybrid_plan.layers", count=int(by.loc[p, "layers"])) for p in order],
        textposition="auto",
        hovertemplate="%{y}: %{x:.4g} MB<extra></extra>",
    )
    drawn.update_yaxes(autorange="reversed", type="category")
    drawn.update_xaxes(showgrid=True)
    return drawn


FIGURES = (sensitivity, sensitivity_table, plan, sizes, front)


def _why_no_interval(record: StageRecord) -> str:
    return str(record.facts.get("sensitivity", {}).get("no_interval", ""))


def _ends(row: Any) -> tuple[float | None, float | None]:
    """Of a row of ``sensitivity``; records of before there were intervals have none."""
    lo, hi = getattr(row, "lo", None), getattr(row, "hi", None)
    return None if pd.isna(lo) else lo, None if pd.isna(hi) else hi


def _bars(rows: pd.DataFrame) -> dict[str, object]:
    if not {"lo", "hi"} <= set(rows):
        return interval_bars([], [])
    above, below = rows["hi"] - rows["quality_loss"], rows["quality_loss"] - rows["lo"]
    return interval_bars(*(part.replace({np.nan: None}).tolist() for part in (above, below)))


def _bases(rows: pd.DataFrame) -> list[str]:
    return list(rows["base"].unique()) if "base" in rows else []


def _precisions(rows: pd.DataFrame) -> list[str]:
    present = set(rows["precision"])
    known = [p for p in PRECISION_COLOURS if p in present]
    return known + sorted(present - set(known))
