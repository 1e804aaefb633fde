"""Readiness: what the machine can do, and what the probe measured on a real shape."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from workbench.figures.html_view import HtmlView
from workbench.figures.theme import (
    ARM_COLOURS,
    ARM_SYMBOLS,
    BLUE,
    GREY,
    LOG_TICKS,
    UNKNOWN_SYMBOL,
    VERMILION,
    FigureTexts,
    arms_in_order,
    error_bars,
    figure,
    log_axis,
    reason_for,
    valued,
    why_not,
    wrapped,
)
from workbench.records.run import open_folder
from workbench.records.stage_record import StageRecord
from workbench.report.roadmap_page import roadmap_html, roadmap_lines, roadmap_page
from workbench.wording.numbers import number


def roadmap(record: StageRecord, language: str = "en") -> HtmlView:
    """Roles, a checklist for each stage and the register of risks, of the run as far as it is."""
    say = FigureTexts(language)
    page = roadmap_page(open_folder(record.folder.parents[1]), say)
    return HtmlView(roadmap_html(page, say), "\n".join(roadmap_lines(page, say)))


def bandwidth(record: StageRecord, language: str = "en") -> go.Figure:
    """Measured read bandwidth by number of threads, and of the GPU where there is one."""
    say = FigureTexts(language)
    title = say("readiness.bandwidth.title")
    rows = valued(record, "read_bandwidth_gbps")
    if not rows:
        return why_not(say, title, reason_for(record, "read_bandwidth_gbps"))
    rows.sort(key=lambda m: int(m.labels.get("threads", 0)))
    gpu = valued(record, "gpu_read_bandwidth_gbps")
    drawn = figure(
        say, title, say("axis.threads"), say("axis.bandwidth"), height=320, log="y" if gpu else ""
    )
    names = [m.labels.get("threads", "?") for m in rows] + [say("readiness.bandwidth.gpu")] * len(
        gpu
    )
    rows += gpu
    drawn.add_bar(
        x=names,
        y=[m.value for m in rows],
        error_y=error_bars(rows),
        marker_color=BLUE,
        width=0.45,
        customdata=[m.n for m in rows],
        hovertemplate="%{y:.3g} GB/s · n = %{customdata}<extra></extra>",
    )
    drawn.update_xaxes(type="category")
    return drawn


def fits(record: StageRecord, language: str = "en") -> go.Figure:
    """Memory that each preset needs to serve and to train, against the free memory."""
    say = FigureTexts(language)
    title = say("readiness.fits.title")
    if "fits" not in record.tables or (rows := record.table("fits")).empty:
        return why_not(say, title, say("fig.no_rows"))
    rows = rows.sort_values("parameters")
    names = [say.get(f"preset.{name}", name) for name in rows["preset"]]
    needs = (
        ("serving_ternary_gb", "serve_ternary", VERMILION, "diamond"),
        ("serving_full_gb", "serve_full", BLUE, "circle"),
        ("training_gb", "train", GREY, "square"),
    )
    drawn = figure(say, title, say("axis.memory_gb"), height=150 + 34 * len(rows), log="x")
    for column, name, colour, symbol in needs:
        drawn.add_scatter(
            x=rows[column],
            y=names,
            mode="markers",
            name=say(f"needs.{name}"),
            marker={"color": colour, "symbol": symbol, "size": 12},
            hovertemplate="%{y}: %{x:.3g} GB<extra>%{fullData.name}</extra>",
        )
    gpu = record.metric("gpu_memory_available_gb")
    free = gpu or record.metric("memory_available_gb")
    if free and free.value:
        drawn.add_vline(x=free.value, line={"color": "#3F4650", "dash": "dash", "width": 1.5})
        drawn.add_annotation(
            text=say("readiness.fits.gpu" if gpu else "readiness.fits.free", gb=free.value),
            x=math.log10(free.value),  # on a logarithmic axis annotations count in decades
            y=0,
            yref="paper",
            yanchor="bottom",
            xanchor="left",
            showarrow=False,
            font={"size": 12},
            bgcolor="rgba(255,255,255,0.75)",
        )
    decades = LOG_TICKS[::3]
    drawn.update_xaxes(tickvals=decades, ticktext=[number(gb, say.language) for gb in decades])
    drawn.update_yaxes(type="category", showgrid=True)
    return drawn


def probe_speed(record: StageRecord, language: str = "en") -> go.Figure:
    """Every timed block of the probe: decode speed of both arms in the order of measuring."""
    say = FigureTexts(language)
    title = say("readiness.probe_speed.title")
    if "probe" not in record.tables or (rows := record.table("probe")).empty:
        return why_not(say, title, reason_for(record, "decode_speedup", "decode_tokens_per_s"))
    rows = rows[rows["phase"] == "decode"]
    drawn = figure(say, title, say("axis.block"), say("axis.tokens_per_s"))
    drawn.update_yaxes(rangemode="tozero")
    for arm in arms_in_order(rows["arm"].unique()):
        own = rows[rows["arm"] == arm]
        drawn.add_scatter(
            x=own["block"],
            y=own["tokens"] / own["seconds"],
            mode="markers",
            name=say.label("arm", arm),
            marker={
                "color": ARM_COLOURS.get(arm, GREY),
                "symbol": ARM_SYMBOLS.get(arm, UNKNOWN_SYMBOL),
                "size": 10,
            },
            hovertemplate="%{y:.3g}<extra>%{fullData.name}</extra>",
        )
        mean = record.metric("decode_tokens_per_s", arm=arm, source="probe")
        if mean and mean.value is not None:
            colour = ARM_COLOURS.get(arm, GREY)
            drawn.add_hline(y=mean.value, line={"color": colour, "width": 1.5, "dash": "dot"})
            if mean.lo is not None and mean.hi is not None:
                drawn.add_hrect(
                    y0=mean.lo, y1=mean.hi, fillcolor=colour, opacity=0.12, line_width=0
                )
    drawn.update_xaxes(dtick=1 if rows["block"].nunique() <= 20 else None)
    return drawn


def probe_gains(record: StageRecord, language: str = "en") -> go.Figure:
    """What ternary gains over full precision, INT8 and INT4: memory, decode, prefill."""
    say = FigureTexts(language)
    title = say("readiness.probe_gains.title")
    ratios = ("memory_ratio", "decode_speedup", "prefill_speedup")
    over = (f"{name}_over_{kind}" for kind in ("int8", "int4") for name in ratios)
    names = (*ratios, *over)
    rows = [m for name in names for m in valued(record, name, source="probe")]
    if not rows:
        return why_not(say, title, reason_for(record, *names, source="probe"))
    drawn = figure(say, title, say("axis.gain"), height=140 + 52 * len(rows))
    drawn.add_scatter(
        x=[m.value for m in rows],
        y=[wrapped(say.metric(m.name)) for m in rows],
        error_x=error_bars(rows),
        mode="markers",
        marker={"color": VERMILION, "symbol": "diamond", "size": 13},
        showlegend=False,
        hovertemplate="%{y}: %{x:.3g}×<extra></extra>",
    )
    drawn.add_vline(x=1, line={"color": "#3F4650", "dash": "dash", "width": 1.5})
    drawn.update_xaxes(rangemode="tozero", showgrid=True)
    drawn.update_yaxes(autorange="reversed")
    log_axis(drawn, "x", rows, language)
    return drawn


FIGURES = (probe_gains, probe_speed, bandwidth, fits)
TABLES = (roadmap,)
