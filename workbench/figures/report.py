"""Report: the verdict card and what stands behind it, gates, claims and measurements, cost."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup, escape

from workbench.figures.forecast import forecast
from workbench.figures.html_view import HtmlView
from workbench.figures.theme import (
    ARM_COLOURS,
    GREY,
    OUTCOME_COLOURS,
    VERMILION,
    FigureTexts,
    figure,
    interval_bars,
    why_not,
    wrapped,
)
from workbench.figures.what_if import tornado, what_if
from workbench.records.run import open_folder
from workbench.records.stage_record import StageRecord
from workbench.report.card import card_html, card_lines, verdict_card
from workbench.report.trade_off import trade_off as make_trade_off
from workbench.report.trade_off import trade_off_html, trade_off_text
from workbench.report.views import verdict_view
from workbench.wording.labels import labels_of

OUTCOME_SYMBOLS = {"pass": "circle", "fail": "square", "inconclusive": "diamond-open"}


def card(record: StageRecord, language: str = "en") -> HtmlView:
    """The verdict card of the run whose judgement ``record`` is."""
    say = FigureTexts(language)
    run = open_folder(record.folder.parents[1])
    shown = verdict_card(run, say, record if "second_judgement" in record.facts else None)
    return HtmlView(card_html(shown, say), "\n".join(card_lines(shown, say)))


def trade_off(record: StageRecord, language: str = "en") -> HtmlView:
    """Quality against speed against memory of all arms, as on the report's first screen."""
    say = FigureTexts(language)
    run = open_folder(record.folder.parents[1])
    again = record if "second_judgement" in record.facts else None
    picture = make_trade_off(run, say, again)
    return HtmlView(trade_off_html(picture, say, alone=True), trade_off_text(picture, say))


def reasons(record: StageRecord, language: str = "en") -> HtmlView:
    """Why the verdict is what it is, and how far it reaches: a sentence each."""
    say = FigureTexts(language)
    view = verdict_view({"report": record}, say)
    parts = [(say("page.reasons"), view["reasons"]), (say("page.caveats"), view["caveats"])]
    html = Markup("").join(
        Markup("<h4>{}</h4><ul>{}</ul>").format(
            title, Markup("").join(Markup("<li>{}</li>").format(escape(text)) for text in texts)
        )
        for title, texts in parts
        if texts
    )
    lines = [line for title, texts in parts for line in (title, *(f"- {t}" for t in texts))]
    return HtmlView(html, "\n".join(lines))


def gates(record: StageRecord, language: str = "en") -> go.Figure:
    """How far each gate's deciding end is on the good side of its limit, in per cent of it."""
    say = FigureTexts(language)
    title = say("report.gates.title")
    rows = record.table("gates") if "gates" in record.tables else pd.DataFrame()
    if rows.empty:
        return why_not(say, title, say("page.no_gates"))
    names = [
        wrapped(say.figure(row.metric, labels_of(row.labels)), 34) for row in rows.itertuples()
    ]
    drawn = figure(say, title, say("axis.margin"), height=150 + 48 * len(rows))
    sign = rows["side"].map({"at_most": -1.0, "at_least": 1.0})
    scale = rows["limit"].abs().where(rows["limit"] != 0, 1.0)
    margin = 100 * sign * (rows["decider"].astype(float) - rows["limit"]) / scale
    for outcome, colour in OUTCOME_COLOURS.items():
        chosen = rows["outcome"] == outcome
        if not chosen.any():
            continue
        drawn.add_scatter(
            x=margin[chosen].fillna(0.0).clip(-300, 300),
            y=[name for name, take in zip(names, chosen, strict=True) if take],
            mode="markers",
            name=say(f"outcome.{outcome}"),
            marker={"color": colour, "symbol": OUTCOME_SYMBOLS[outcome], "size": 13},
            customdata=rows.loc[chosen, ["decider", "limit"]],
            hovertemplate="%{customdata[0]:.4g} / %{customdata[1]:.4g}"
            "<extra>%{fullData.name}</extra>",
        )
    drawn.add_vline(x=0, line={"color": "#3F4650", "dash": "dash", "width": 1.5})
    drawn.update_xaxes(showgrid=True, ticksuffix=" %")
    drawn.update_yaxes(
        type="category", categoryorder="array", categoryarray=names[::-1], tickfont={"size": 12}
    )
    return drawn


def claims(record: StageRecord, language: str = "en") -> go.Figure:
    """Each claim of the literature, and this run's figures for the same quantity."""
    say = FigureTexts(language)
    title = say("report.claims.title")
    rows = record.table("claims") if "claims" in record.tables else pd.DataFrame()
    if rows.empty:
        return why_not(say, title, say("fig.no_rows"))
    order = [wrapped(say(f"claim.{claim}.title")) for claim in dict.fromkeys(rows["claim"])]
    first = rows.drop_duplicates("claim")
    drawn = figure(say, title, say("axis.gain"), height=150 + 54 * len(order), log="x")
    for kind, symbol in (("measured", "line-ns-open"), ("theoretical", "circle-open")):
        own = first[first["claimed_kind"] == kind]
        drawn.add_scatter(
            x=own["claimed"],
            y=[wrapped(say(f"claim.{claim}.title")) for claim in own["claim"]],
            mode="markers",
            name=say(f"report.claims.{kind}"),
            marker={
                "color": "#3F4650", "symbol": symbol, "size": 18, "line": {"width": 3},
            },
            hovertemplate="%{x:.3g}×<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    found = rows.dropna(subset=["measured"])
    sources = found["labels"].map(lambda text: labels_of(text).get("source", ""))
    for source, symbol in (("probe", "diamond"), ("trained", "square")):
        own = found[sources == source]
        if own.empty:
            continue
        drawn.add_scatter(
            x=own["measured"],
            y=[wrapped(say(f"claim.{claim}.title")) for claim in own["claim"]],
            error_x=_bars(own, "measured"),
            mode="markers",
            name=say("report.claims.here", source=say.label("source", source)),
            marker={
                "color": VERMILION if source == "probe" else ARM_COLOURS["hybrid"],
                "symbol": symbol, "size": 11,
            },
            customdata=[say.labels(labels_of(text)) for text in own["labels"]],
            hovertemplate="%{x:.3g}× · %{customdata}<extra></extra>",
        )  # fmt: skip
    drawn.add_vline(x=1, line={"color": "#8A8F98", "dash": "dash", "width": 1})
    drawn.update_xaxes(
        showgrid=True,
    )  # fmt: skip
    drawn.update_yaxes(
        type="category", categoryorder="array", categoryarray=order[::-1], showgrid=True
    )
    return drawn


def cost(record: StageRecord, language: str = "en") -> go.Figure:
    """Cost of energy of a million output tokens in each arm, or why there is none."""
    say = FigureTexts(language)
    title = say("report.cost.title")
    rows = record.table("cost") if "cost" in record.tables else pd.DataFrame()
    if len(rows):
        # Of the load where it is known, else of the fixed shapes.
        load = rows[rows["per"] == "load_1m_output_tokens"]
        rows = load if load["value"].notna().any() else rows[rows["per"] == "1m_tokens"]
    priced = rows.dropna(subset=["value"]) if len(rows) else rows
    if priced.empty:
        reasons = "; ".join(dict.fromkeys(rows["reason"])) if len(rows) else say("page.cost_none")
        return why_not(say, title, reasons)
    currency = priced["currency"].iloc[0]
    drawn = figure(say, title, f"{currency}", height=140 + 46 * len(priced))
    labels = [labels_of(text) for text in priced["labels"]]
    drawn.add_bar(
        x=priced["value"],
        y=[wrapped(say.labels({k: v for k, v in own.items() if k != "source"})) for own in labels],
        error_x=_bars(priced, "value"),
        orientation="h",
        marker_color=[ARM_COLOURS.get(own.get("arm", ""), GREY) for own in labels],
        customdata=[say.get(f"kind.{kind}", kind) for kind in priced["kind"]],
        hovertemplate="%{x:.4g} · %{customdata}<extra>%{y}</extra>",
    )  # fmt: skip
    drawn.update_yaxes(autorange="reversed", type="category")
    drawn.update_xaxes(showgrid=True)
    return drawn


FIGURES = (gates, claims, cost, forecast)
TABLES = (card, trade_off, reasons, what_if, tornado)
"""For a notebook; the report has its own."""


def _bars(rows: pd.DataFrame, column: str) -> dict[str, object]:
    """Error bars of a table's rows; a row without an interval gets none."""
    ends = [
        [None if pd.isna(distance) else float(distance) for distance in distances]
        for distances in (rows["hi"] - rows[column], rows[column] - rows["lo"])
    ]
    return interval_bars(*ends)
