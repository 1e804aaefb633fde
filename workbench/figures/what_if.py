"""The cost of a year in each arm, and sliders that ask what if.

The sliders choose the numbers and nothing else: every figure comes from
:func:`workbench.economics.what_if.what_if`, the same function that filled the report. Where nobody
turns them (a headless run), or ipywidgets is not installed, the figure stands alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from workbench.economics.case import Case
from workbench.economics.what_if import CaseResult
from workbench.economics.what_if import what_if as answer
from workbench.figures.theme import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    FigureTexts,
    figure,
    why_not,
    wrapped,
)
from workbench.paths import HEADLESS
from workbench.records.stage_record import StageRecord
from workbench.report.economy import case_from_json
from workbench.report.economy_views import number_name
from workbench.wording.numbers import number, with_interval

PARTS = {"capital": BLUE, "running": PURPLE, "energy": AMBER, "demand": GREY, "one_off": GREEN}
DRAWS = 200
SHOWN_TURNS = 8


def year_figure(case: Case, result: CaseResult, language: str = "en") -> go.Figure:
    """What a year costs in each arm, in its parts, with what is needed and saved above it."""
    say = FigureTexts(language)
    drawn = figure(say, say("report.what_if.title"), "", case.currency, height=420)
    arms = [arm.name for arm in case.arms]
    names = [say.get(f"arm.{arm}", arm) for arm in arms]
    values = {(f.arm, f.name): f for f in result.figures}
    for part, colour in PARTS.items():
        heights = [_part(values, arm, part) for arm in arms]
        if any(heights):
            drawn.add_bar(
                x=names, y=heights, name=say(f"economy.{part}"), marker_color=colour,
                hovertemplate="%{y:.6g}<extra>%{fullData.name}</extra>",
            )  # fmt: skip
    drawn.update_layout(barmode="stack")
    for arm, name in zip(arms, names, strict=True):
        year, servers = values[arm, "year"], values[arm, "servers"]
        known = year.lo is not None and year.hi is not None and year.lo != year.hi
        lo, hi = (year.lo, year.hi) if known else (None, None)
        value, ends = with_interval(year.value or 0.0, lo, hi, language)
        ends = f"{ends}<br>" if ends else ""
        text = (
            f"<b>{value} {case.currency}</b><br>{ends}"
            f"{say('kind.' + year.kind)}<br>{say('economy.servers_short')}: "
            f"{number(servers.value or 0.0, language)}"
        )
        drawn.add_annotation(
            x=name, y=year.value, text=text, showarrow=False, yshift=38 if ends else 30
        )
    drawn.update_yaxes(rangemode="tozero", range=[0, 1.25 * max(
        values[arm, "year"].value or 0.0 for arm in arms)])  # fmt: skip
    return drawn


def what_if(record: StageRecord, language: str = "en") -> Any:
    """The figure with sliders for tariff, PUE, growth, utilisation and requests a day; alone where
    the run is headless. In place of a plot the reason why there is no case or no cost."""
    say = FigureTexts(language)
    facts = record.facts.get("economy", {"reason": say("page.cost_none")})
    if "reason" in facts:
        return why_not(say, say("report.what_if.title"), facts["reason"])
    case = case_from_json(facts["case"])
    if case.no_power:
        return why_not(say, say("report.what_if.title"), case.no_power)
    if os.environ.get(HEADLESS):
        return answered(case, {}, language)
    try:
        return _sliders(case, say)
    except ImportError:
        return answered(case, {}, language)


def tornado(record: StageRecord, language: str = "en") -> go.Figure:
    """What the saving of a year hangs on, in the first arm beside full precision: each assumed
    number at both ends of its range, the widest swing on top."""
    say = FigureTexts(language)
    title = say("report.tornado.title")
    turns = record.table("tornado") if "tornado" in record.tables else None
    if turns is None or turns.empty:
        facts = record.facts.get("economy", {})
        why = facts.get("reason") or facts.get("case", {}).get("no_power")
        return why_not(say, title, why or say("page.cost_none"))
    case = case_from_json(record.facts["economy"]["case"])
    arm = case.arms[1].name
    own = turns[turns["arm"] == arm].head(SHOWN_TURNS)
    now = answer(case, draws=DRAWS)
    saving = (now.figure(case.baseline, "year").value or 0.0) - (now.figure(arm, "year").value or 0)
    height = 170 + 34 * len(own)
    x = f"{say('economy.saving_there')}, {say.get(f'arm.{arm}', arm)}, {case.currency}"
    drawn = figure(say, title, x, height=height)
    names = [wrapped(number_name(name, say)) for name in own["number"]]
    for end, colour in (("low", BLUE), ("high", AMBER)):
        drawn.add_bar(
            y=names, x=own[f"saving_{end}"] - saving, base=saving, orientation="h",
            name=say(f"report.tornado.{end}"), marker_color=colour,
            customdata=list(zip(own[end], own[f"saving_{end}"], strict=True)),
            hovertemplate="%{customdata[0]:.5g}: %{customdata[1]:.6g}<extra>%{y}</extra>",
        )  # fmt: skip
    drawn.update_layout(barmode="overlay")
    drawn.add_vline(x=saving, line_color=GREY)
    drawn.update_yaxes(autorange="reversed", type="category")
    drawn.update_xaxes(showgrid=True)
    return drawn


def answered(case: Case, changes: Mapping[str, float], language: str = "en") -> go.Figure:
    """The figure for changed numbers."""
    return year_figure(case, answer(case, changes, draws=DRAWS), language)


def _part(values: dict[tuple[str, str], Any], arm: str, part: str) -> float:
    """One part of a year; of what the change costs once its annuity, which is what is left."""
    if part != "one_off":
        return float(values[arm, part].value or 0.0)
    others = sum(values[arm, each].value or 0.0 for each in PARTS if each != "one_off")
    return max(0.0, round(float(values[arm, "year"].value or 0.0) - others, 6))


def _sliders(case: Case, say: FigureTexts) -> Any:
    """Raises ImportError without ipywidgets."""
    import ipywidgets as widgets
    from IPython.display import display

    numbers = case.numbers
    pue, slope = numbers["pue"].value, numbers["pue_slope"].value
    requests = numbers["requests_per_day"].value
    wide: dict[str, Any] = {
        "continuous_update": False, "style": {"description_width": "16em"},
        "layout": {"width": "46em"},
    }  # fmt: skip
    ranges = {
        "price_scale": (0.25, 4.0, 0.05), "pue": (max(1.0, slope), max(2.5, pue), 0.01),
        "growth": (-0.5, 1.0, 0.05), "utilisation": (0.2, 1.0, 0.05),
    }  # fmt: skip
    ranges = {name: ends for name, ends in ranges.items() if name in numbers}
    controls = {
        name: widgets.FloatSlider(
            value=numbers[name].value, min=low, max=high, step=step,
            description=say(f"number.{name}"), **wide,
        )
        for name, (low, high, step) in ranges.items()
    }  # fmt: skip
    controls["requests_per_day"] = widgets.IntSlider(
        value=round(requests), min=max(1, round(requests / 10)), max=round(requests * 10),
        step=max(1, round(requests / 100)), description=say("number.requests_per_day"), **wide,
    )  # fmt: skip

    def show(**changes: float) -> None:
        display(answered(case, {name: float(value) for name, value in changes.items()},
                         say.language))  # fmt: skip

    shown = widgets.interactive_output(show, controls)
    return widgets.VBox([*controls.values(), shown])
