"""How all figures look, and the few shapes they share.

One colour and one symbol per arm, everywhere, from the Okabe-Ito palette, which stays apart
for the colour-blind. Importing this module chooses the plotly mime type as the only output
of a notebook: it draws in JupyterLab, costs no copy of plotly.js in the file, and the
offline export can swap it for a plain div.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io

from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.palette import AMBER, ARM_COLOURS, BLUE, BROWN, GREEN, GREY, ORANGE, VERMILION
from workbench.report.palette import PURPLE as PURPLE
from workbench.report.palette import SKY as SKY
from workbench.wording.labels import ARMS
from workbench.wording.numbers import number
from workbench.wording.reasons import reason_words
from workbench.wording.text import REPORT_TEXTS, Texts

plotly.io.renderers.default = "plotly_mimetype"

ARM_SYMBOLS = {
    "full_precision": "circle", "ternary": "diamond", "post_training": "square",
    "int8": "triangle-up", "int4": "triangle-down", "hybrid": "star",
    "checkpoint": "circle-open", "speculative": "circle-dot",
}  # fmt: skip
LOST, UNKNOWN_SYMBOL = "x", "hexagon"
"""A cross is a loss, in every figure, and nothing else is one."""
CLASS_COLOURS = {"interactive": BLUE, "batch": ORANGE}
STATE_COLOURS = {"minus": BLUE, "zero": "#C9CDD3", "plus": VERMILION}
PRECISION_COLOURS = {"ternary": VERMILION, "int8": ORANGE, "int4": BROWN, "high_precision": BLUE}
OUTCOME_COLOURS = {"pass": GREEN, "fail": VERMILION, "inconclusive": AMBER}
LOG_TICKS = [round(m * 10.0**e, 9) for e in range(-4, 8) for m in (1, 2, 5)]
FIGURE_TEXTS = Path(__file__).parent
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDE = 100
"""Ends of intervals further apart than by this factor ask for a logarithmic axis."""
MOST_DECADES = 4
"""With more than these on a logarithmic axis only its powers of ten are named."""
MOST_POINTS = 4000
"""A trace is thinned to this many points: more draws slowly and shows nothing else."""


class FigureTexts(Texts):
    """The figures' own sentences; arms, metrics and units come from the report's catalogue."""

    def __init__(self, language: str = "en") -> None:
        super().__init__(language, REPORT_TEXTS, FIGURE_TEXTS)


def figure(
    say: Texts, title: str, x: str = "", y: str = "", *, height: int = 380, log: str = ""
) -> go.Figure:
    """An empty figure with titles already in words. log: axes with a logarithmic scale, "xy"."""
    drawn = go.Figure()
    drawn.update_layout(
        template="none",
        title={
            "text": title,
            "x": 0,
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "xref": "container",
            "pad": {"l": 6, "t": 12},
            "font": {"size": 16},
        },
        font={"family": FONT, "size": 13, "color": "#2B2F36"},
        separators=", " if say.language == "ru" else ".,",
        height=height,
        margin={"l": 64, "r": 20, "t": 96, "b": 56},
        paper_bgcolor="white",
        plot_bgcolor="white",
        legend={
            # Both in the container's measure: mixed with "paper" a wide legend eats the plot.
            "orientation": "h",
            "xref": "container",
            "yref": "container",
            "x": 0,
            "y": 1 - 44 / height,
            "yanchor": "top",
            "traceorder": "normal",
        },
        hoverlabel={"font": {"family": FONT, "size": 12}},
        bargap=0.28,
        bargroupgap=0.08,
    )
    axis = {
        "gridcolor": "#E4E7EB", "linecolor": "#B8BDC6", "zerolinecolor": "#B8BDC6",
        "ticks": "outside", "ticklen": 4, "tickcolor": "#B8BDC6", "automargin": True,
        "title": {"standoff": 10, "font": {"size": 13}},
    }  # fmt: skip
    drawn.update_xaxes(axis, title_text=x, showgrid=False, zeroline=False)
    drawn.update_yaxes(axis, title_text=y)
    ticks = {"type": "log", "tickmode": "array", "tickvals": LOG_TICKS}
    ticks["ticktext"] = [number(value, say.language) for value in LOG_TICKS]
    if "x" in log:
        drawn.update_xaxes(ticks)
    if "y" in log:
        drawn.update_yaxes(ticks)
    return drawn


def log_axis(drawn: go.Figure, axis: str, metrics: Sequence[Metric], language: str) -> None:
    """Make the axis "x" or "y" logarithmic if the intervals of ``metrics`` are :func:`wide`."""
    if not wide(metrics):
        return
    ends = [end for m in metrics for end in (m.lo, m.value, m.hi) if end]
    decades = math.log10(max(ends) / min(ends))
    ticks = LOG_TICKS[::3] if decades > MOST_DECADES else LOG_TICKS
    update = drawn.update_xaxes if axis == "x" else drawn.update_yaxes
    update(
        type="log", rangemode="normal", tickmode="array", tickvals=ticks,
        ticktext=[number(tick, language) for tick in ticks],
    )  # fmt: skip


def why_not(say: Texts, title: str, reason: str) -> go.Figure:
    """In place of a plot: the title, and why there is nothing to draw, a reason a line."""
    drawn = figure(say, title, height=230)
    drawn.update_layout(margin={"l": 20, "b": 20})
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False)
    why = wrapped(told(say, reason), 60) or say("fig.no_rows")
    drawn.add_annotation(
        text=f"<b>{say('kind.not measured')}</b><br>{why}", showarrow=False, x=0.5, y=0.5,
        xref="paper", yref="paper", align="center", font={"size": 13, "color": "#6B7280"},
    )  # fmt: skip
    return drawn


def told(say: Texts, reason: str) -> str:
    """Recorded reasons, one a line, in the language of ``say``."""
    return "; ".join(dict.fromkeys(reason_words(one, say) for one in reason.splitlines()))


def valued(record: StageRecord, name: str, **labels: str) -> list[Metric]:
    """All figures of the record with this name and these labels that have a value."""
    return [m for m in record.metrics if m.matches(name, labels) and m.value is not None]


def reason_for(record: StageRecord, *names: str, **labels: str) -> str:
    """The reasons recorded for figures without a value, a line each; empty if none was recorded."""
    found = [
        m.reason
        for m in record.metrics
        if m.name in names and m.matches(m.name, labels) and m.value is None and m.reason
    ]
    return "\n".join(dict.fromkeys(found))


def wide(metrics: Sequence[Metric]) -> bool:
    """Whether the ends of the intervals lie so far apart that a linear axis shows none of them."""
    ends = [end for m in metrics for end in (m.lo, m.value, m.hi) if end is not None and end > 0]
    whole = all(end is None or end > 0 for m in metrics for end in (m.lo, m.value))
    return bool(ends) and whole and max(ends) > WIDE * min(ends)


def error_bars(metrics: Sequence[Metric]) -> dict[str, object]:
    """The intervals of ``metrics`` as plotly error bars; no bar where there is none."""
    above = [None if m.hi is None or m.value is None else m.hi - m.value for m in metrics]
    below = [None if m.lo is None or m.value is None else m.value - m.lo for m in metrics]
    return interval_bars(above, below)


def interval_bars(
    above: Sequence[float | None], below: Sequence[float | None]
) -> dict[str, object]:
    """Plotly error bars from the distances to both ends; None draws nothing."""
    return {
        "type": "data",
        "symmetric": False,
        "visible": any(x is not None for x in (*above, *below)),
        "array": list(above),
        "arrayminus": list(below),
        "thickness": 1.5,
        "width": 5,
        "color": "#3F4650",
    }


def arm_marker(arm: str, size: int) -> dict[str, object]:
    """The arm's colour and symbol; an address has none of its own."""
    symbol = ARM_SYMBOLS.get(arm, UNKNOWN_SYMBOL)
    return {"color": ARM_COLOURS.get(arm, GREY), "symbol": symbol, "size": size}


def draw_arms(
    drawn: go.Figure,
    say: Texts,
    rows: Sequence[Metric],
    place: Callable[[Metric], str],
    hover: str,
    size: int,
) -> None:
    """A point with its interval for each figure, side by side for the arms at each place of the
    vertical axis. hover: what stands before the number of observations."""
    for arm in arms_in_order([m.labels.get("arm", "") for m in rows]):
        own = [m for m in rows if m.labels.get("arm", "") == arm]
        drawn.add_scatter(
            x=[m.value for m in own],
            y=[place(m) for m in own],
            error_x=error_bars(own),
            mode="markers",
            orientation="h",
            name=say.label("arm", arm),
            marker=arm_marker(arm, size),
            customdata=[m.n for m in own],
            hovertemplate=f"{hover} · n = %{{customdata}}<extra>%{{fullData.name}}</extra>",
        )
    drawn.update_layout(scattermode="group")
    drawn.update_xaxes(showgrid=True)


def wrapped(text: str, width: int = 22) -> str:
    """A long name of a category on several lines, so that it leaves room for the plot."""
    return "<br>".join(textwrap.wrap(text, width))


def thinned(rows: pd.DataFrame, most: int = MOST_POINTS) -> pd.DataFrame:
    """Every k-th row, so that at most ``most`` remain; the last one is always kept."""
    step = -(-len(rows) // most)
    if step <= 1:
        return rows
    chosen = np.unique(np.append(np.arange(0, len(rows), step), len(rows) - 1))
    return rows.iloc[chosen]


def arms_in_order(names: Sequence[str]) -> list[str]:
    """The known arms first, in their order, then any other by name."""
    known = [arm for arm in ARMS if arm in names]
    return known + sorted(set(names) - set(known))
