"""A/B under the load: latencies of every arm for the same requests, and what each arm kept."""

from __future__ import annotations

from functools import partial

import plotly.graph_objects as go

from workbench.figures import theme
from workbench.figures.theme import FigureTexts, draw_arms, reason_for, valued, why_not
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.wording.numbers import with_interval
from workbench.wording.text import Texts

LATENCIES = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
QUANTILES = ("p50", "p95", "p99")
ENERGIES = ("energy_j_per_request", "energy_net_j_per_request", "energy_j_per_accepted_answer")
ENERGY_ROWS = (
    *ENERGIES, "energy_j_per_token", "prefill_energy_j_per_token", "decode_energy_j_per_token",
    "energy_ratio", "energy_net_ratio", "accepted_answer_energy_ratio",
)  # fmt: skip


def under_load(record: StageRecord, language: str = "en") -> go.Figure:
    """Latencies of each arm at the middle and in the tail, for the same requests."""
    say = FigureTexts(language)
    title = say("measure_ab.under_load.title")
    rows = [m for name in LATENCIES for m in valued(record, name, source="load")]
    rows = [m for m in rows if m.value]  # a gap of 0 has no place on a log scale
    if not rows:
        return why_not(say, title, reason_for(record, *LATENCIES, source="load"))
    places = [
        _place(say, name, q)
        for name in LATENCIES
        for q in QUANTILES
        if any(m.name == name and m.labels["quantile"] == q for m in rows)
    ]
    height = 170 + 46 * len(places)
    drawn = theme.figure(say, title, say("axis.ms"), height=height, log="x")
    where = partial(_place_of, say)
    draw_arms(drawn, say, rows, where, "%{x:.4g} ms", 10)
    drawn.update_yaxes(type="category", categoryorder="array", categoryarray=places[::-1])
    return drawn


def load_energy(record: StageRecord, language: str = "en") -> go.Figure:
    """What a request and an accepted answer took of each arm, for the same requests."""
    say = FigureTexts(language)
    title = say("measure_ab.load_energy.title")
    rows = [m for name in ENERGIES for m in valued(record, name, source="load")]
    if not rows:
        return why_not(say, title, reason_for(record, *ENERGIES, source="load"))
    drawn = theme.figure(say, title, say("axis.joules"), height=150 + 34 * len(rows))
    for arm in theme.arms_in_order([m.labels["arm"] for m in rows]):
        own = [m for m in rows if m.labels["arm"] == arm]
        drawn.add_bar(
            x=[m.value for m in own],
            y=[theme.wrapped(say.metric(m.name), 26) for m in own],
            error_x=theme.error_bars(own),
            orientation="h",
            name=say.label("arm", arm),
            marker_color=theme.ARM_COLOURS.get(arm, theme.GREY),
            customdata=[m.n for m in own],
            hovertemplate="%{x:.4g} J · n = %{customdata}<extra>%{fullData.name}</extra>",
        )
    drawn.update_layout(barmode="group")
    drawn.update_yaxes(autorange="reversed", type="category")
    drawn.update_xaxes(showgrid=True)
    return drawn


def under_load_table(record: StageRecord, language: str = "en") -> go.Figure:
    """Goodput, targets, latencies and energies of each arm in numbers, with their intervals."""
    say = FigureTexts(language)
    title = say("measure_ab.under_load.title")
    wanted = [
        ("goodput_per_s", {}),
        *(("slo_met_share", {"class": name}) for name in ("interactive", "batch")),
        *((name, {"quantile": q}) for name in LATENCIES for q in QUANTILES),
        *((name, {}) for name in ENERGY_ROWS),
    ]
    kept = [(name, of) for name, of in wanted if valued(record, name, source="load", **of)]
    if not kept:
        return why_not(say, title, reason_for(record, "goodput_per_s", source="load"))
    arms = theme.arms_in_order({m.labels["arm"] for m in valued(record, kept[0][0], source="load")})
    heads = [say.figure(name, of) for name, of in kept]
    columns = [[_shown(record, say, name, arm, of) for name, of in kept] for arm in arms]
    drawn = theme.figure(say, title, height=150 + 34 * len(kept))
    drawn.add_table(
        header={"values": ["", *(say.label("arm", arm) for arm in arms)], "align": "left"},
        cells={"values": [heads, *columns], "align": "left", "height": 28},
    )
    return drawn


def _shown(record: StageRecord, say: Texts, name: str, arm: str, of: dict[str, str]) -> str:
    found = valued(record, name, source="load", arm=arm, **of)
    if not found or found[0].value is None:
        return say("kind.not measured")
    value, interval = with_interval(found[0].value, found[0].lo, found[0].hi, say.language)
    return " ".join(filter(None, (value, say.unit(found[0].unit), interval)))


def _place(say: Texts, name: str, quantile: str) -> str:
    return theme.wrapped(f"{say.metric(name)}, {quantile}", 26)


def _place_of(say: Texts, metric: Metric) -> str:
    return _place(say, metric.name, metric.labels["quantile"])
