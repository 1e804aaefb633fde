"""A/B in the team's terms: one prompt and the arms' answers side by side, and who was right."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.figures import theme
from workbench.figures.html_view import HtmlView
from workbench.figures.theme import FigureTexts, draw_arms, valued, why_not
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.own_view import prompt_view
from workbench.report.plotly_page import templates
from workbench.wording.text import Texts

SHARES = ("accepted_share", "task_accuracy")


def answers(
    record: StageRecord,
    language: str = "en",
    prompt: str | None = None,
    shown_arms: Sequence[str] | None = None,
) -> HtmlView:
    """What the arms answered to one own prompt. prompt: its name; None takes the first. shown_arms:
    None takes all."""
    say = FigureTexts(language)
    if "prompts" not in record.tables:
        said = say("own.none")
        return HtmlView(f"<p>{said}</p>", said)
    rows = record.table("prompts")
    name = str(rows["prompt"].iloc[0]) if prompt is None else prompt
    if not (rows["prompt"] == name).any():
        known = ", ".join(dict.fromkeys(rows["prompt"]))
        raise ValueError(f"prompt {name!r} is none of this run's: {known}")
    view = prompt_view(rows, name, record.facts["prompts_reference"], say, shown_arms)
    html = templates().get_template("own_prompt.html").render(prompt=view, t=say)
    told = [f"{answer['arm']}: {answer['whole'] or answer['start']}" for answer in view["answers"]]
    return HtmlView(html, "\n\n".join([view["text"], *told]))


def accuracy(record: StageRecord, language: str = "en") -> go.Figure:
    """Accepted answers to own prompts and right answers of own tasks of each arm."""
    say = FigureTexts(language)
    title = say("measure_ab.accuracy.title")
    rows = [metric for name in SHARES for metric in valued(record, name)]
    if not rows:
        return why_not(say, title, say("own.accuracy.none"))
    places = list(dict.fromkeys(_place(say, metric) for metric in rows))
    height = 170 + 60 * len(places)
    drawn = theme.figure(say, title, height=height)
    draw_arms(drawn, say, rows, lambda metric: _place(say, metric), "%{x:.3g}", 11)
    drawn.update_xaxes(range=[-0.02, 1.02])
    drawn.update_yaxes(type="category", categoryorder="array", categoryarray=places[::-1])
    return drawn


def _place(say: Texts, metric: Metric) -> str:
    return theme.wrapped(metric.labels.get("task") or say.metric(metric.name))
