"""Deployment: every request of the replay, the switch back, and what the readers felt."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.drill import drill
from workbench.figures.profile_load import likeness
from workbench.figures.theme import (
    ARM_COLOURS,
    ARM_SYMBOLS,
    BLUE,
    GREY,
    LOST,
    UNKNOWN_SYMBOL,
    VERMILION,
    FigureTexts,
    arms_in_order,
    error_bars,
    figure,
    reason_for,
    thinned,
    told,
    valued,
    why_not,
    wrapped,
)
from workbench.figures.tuning import tuning
from workbench.records.stage_record import StageRecord
from workbench.wording.labels import PHASES
from workbench.wording.text import Texts


def timeline(record: StageRecord, language: str = "en") -> go.Figure:
    """Wait for the first token of every request, by the arm that answered."""
    say = FigureTexts(language)
    title = say("deploy_rollback.timeline.title")
    if "requests" not in record.tables or (rows := record.table("requests")).empty:
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(say, title, say("axis.time_s"), say("axis.ttft_ms"), height=400)
    answered = thinned(rows.dropna(subset=["first_token_s"]))
    for arm in arms_in_order(answered["arm"].dropna().unique()):
        own = answered[answered["arm"] == arm]
        drawn.add_scatter(
            x=own["intended_s"],
            y=1e3 * (own["first_token_s"] - own["intended_s"]),
            mode="markers",
            name=say.label("arm", arm),
            marker={
                "color": ARM_COLOURS.get(arm, GREY),
                "symbol": ARM_SYMBOLS.get(arm, UNKNOWN_SYMBOL),
                "size": 8,
                "opacity": 0.75,
            },
            customdata=own[["id", "status"]],
            hovertemplate="%{customdata[0]} · %{customdata[1]}<br>%{y:.4g} ms"
            "<extra>%{fullData.name}</extra>",
        )
    unanswered = rows[rows["first_token_s"].isna()]
    if len(unanswered):
        drawn.add_scatter(
            x=unanswered["intended_s"],
            y=np.zeros(len(unanswered)),
            mode="markers",
            name=say("deploy_rollback.unanswered"),
            marker={"color": "#111827", "symbol": LOST, "size": 10},
            customdata=unanswered["status"],
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
    _mark_switches(drawn, record, say)
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def in_flight(record: StageRecord, language: str = "en") -> go.Figure:
    """Requests sent and not yet answered in full, by arm: both drain, none is dropped."""
    say = FigureTexts(language)
    title = say("deploy_rollback.in_flight.title")
    if "requests" not in record.tables or (rows := record.table("requests")).empty:
        return why_not(say, title, say("fig.no_rows"))
    drawn = figure(say, title, say("axis.time_s"), say("axis.in_flight"), height=340)
    whole = rows.dropna(subset=["sent_s", "last_token_s"])
    for arm in arms_in_order(whole["arm"].dropna().unique()):
        own = whole[whole["arm"] == arm]
        steps = pd.concat(
            [pd.Series(1, index=own["sent_s"]), pd.Series(-1, index=own["last_token_s"])]
        )
        count = thinned(steps.sort_index().cumsum().to_frame("count"))
        drawn.add_scatter(
            x=count.index,
            y=count["count"],
            mode="lines",
            fill="tozeroy",
            line={"shape": "hv", "color": ARM_COLOURS.get(arm, GREY), "width": 1.8},
            name=say.label("arm", arm),
            hovertemplate="%{y}<extra>%{fullData.name}</extra>",
        )
    _mark_switches(drawn, record, say)
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def phases(record: StageRecord, language: str = "en") -> go.Figure:
    """First token and whole answer before, during and after the switch: middle and tail."""
    say = FigureTexts(language)
    title = say("deploy_rollback.phases.title")
    rows = [m for name in ("ttft_ms", "e2e_ms") for m in valued(record, name)]
    rows = [m for m in rows if m.labels.get("phase") in PHASES]
    if not rows:
        return why_not(say, title, reason_for(record, "ttft_ms", "e2e_ms"))
    drawn = figure(say, title, "", say("axis.ms"), log="y")
    known = list(dict.fromkeys(m.labels.get("quantile", "") for m in rows))
    quantiles = list(dict.fromkeys([known[0], known[-1]]))
    styles = {"ttft_ms": (BLUE, "circle"), "e2e_ms": (VERMILION, "diamond")}
    for name, (colour, symbol) in styles.items():
        for place, quantile in enumerate(quantiles):
            same = [m for m in rows if m.name == name and m.labels.get("quantile", "") == quantile]
            for arm in arms_in_order({m.labels.get("arm", "") for m in same}):
                own = [m for m in same if m.labels.get("arm", "") == arm]
                own.sort(key=lambda m: PHASES.index(m.labels["phase"]))
                said = (say.metric(name), quantile, say.label("arm", arm) if arm else "")
                drawn.add_scatter(
                    x=[say.label("phase", m.labels["phase"]) for m in own],
                    y=[m.value for m in own],
                    error_y=error_bars(own),
                    mode="lines+markers",
                    name=", ".join(filter(None, said)),
                    line={
                        "color": colour,
                        "width": 2,
                        "dash": ("solid", "dot", "dash", "dashdot")[place % 4],
                    },
                    marker={
                        "symbol": symbol if arm in ("", "hybrid") else f"{symbol}-open",
                        "size": 9,
                    },
                    hovertemplate="%{y:.4g} ms<extra>%{fullData.name}</extra>",
                )
    drawn.update_layout(scattermode="group")
    known_phases = [say.label("phase", phase) for phase in PHASES]
    drawn.update_xaxes(
        type="category", categoryorder="array", categoryarray=known_phases,
        range=[-0.5, len(PHASES) - 0.5],
    )  # fmt: skip
    _say_why_missing(drawn, record, rows, say)
    return drawn


def replayed(record: StageRecord, language: str = "en") -> go.Figure:
    """The load, requests drawn from its profile, and the replay as it was sent."""
    return likeness(record, language, "deploy_rollback.replayed.title")


FIGURES = (timeline, in_flight, phases, drill, replayed, tuning)


def _say_why_missing(drawn: go.Figure, record: StageRecord, rows: list, say: Texts) -> None:
    """In the place of a phase without any mark: why it has none."""
    for place, phase in enumerate(PHASES):
        if any(m.labels["phase"] == phase for m in rows):
            continue
        why = told(say, reason_for(record, "ttft_ms", phase=phase)) or say("fig.no_rows")
        drawn.add_annotation(
            text=wrapped(why, 24), x=place, y=0.5, yref="paper", showarrow=False,
            font={"size": 11, "color": "#6B7280"},
        )  # fmt: skip


def _mark_switches(drawn: go.Figure, record: StageRecord, say: Texts) -> None:
    """A line at every change of arm, named by where it leads."""
    if "switches" not in record.tables:
        return
    for switch in record.table("switches").itertuples():
        to = say.label("arm", str(switch.to_arm))
        drawn.add_vline(
            x=switch.time_s,
            line={"color": "#3F4650", "dash": "dash", "width": 1.5},
            annotation={
                "text": say("deploy_rollback.switch", arm=to),
                "font": {"size": 11},
                "bgcolor": "rgba(255,255,255,0.75)",
            },
            annotation_position="top right",
        )
