"""Pages that open offline: the list of all runs, and runs side by side, with a search field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from workbench.errors import ConfigError
from workbench.figures.compare_tables import every_figure, settings, verdicts
from workbench.figures.theme import FigureTexts
from workbench.records.run import Run
from workbench.records.run_list import RunRow, run_rows
from workbench.report.compare import compare
from workbench.report.plotly_page import templates
from workbench.wording.numbers import duration
from workbench.wording.text import LANGUAGES


@dataclass(frozen=True)
class Part:
    """One section of a page: a heading and what stands below it."""

    title: str
    html: Markup


def runs_page(runs: Sequence[Run], language: str = "en") -> str:
    """The runs, the newest first: date, verdict or state, tags, duration, question."""
    say = _texts(language)
    rows = [_run(row, say) for row in run_rows(runs)[::-1]]
    heads = ("begun", "state", "run", "tags", "took", "question")
    head = Markup("").join(Markup("<th>{}</th>").format(say(f"runs.{name}")) for name in heads)
    table = Markup(
        '<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    )
    body = table.format(head, Markup("").join(rows)) if rows else escape(say("runs.none"))
    return _page(say("runs.title"), [Part(say("runs.count", count=len(rows)), body)], say)


def compare_page(runs: Sequence[Run], language: str = "en") -> str:
    """Runs side by side: verdicts, gates and headlines, what was asked differently, every figure.

    Raises ConfigError for fewer than two different runs.
    """
    say = _texts(language)
    found = compare(runs)
    parts = [
        Part(say(f"compare.part.{name}"), Markup(view(found, language).html))
        for name, view in (
            ("verdicts", verdicts),
            ("figures", every_figure),
            ("settings", settings),
        )
    ]
    return _page(say("compare.title"), parts, say)


def _run(row: RunRow, say: FigureTexts) -> Markup:
    state = say.get(f"decision.{row.state}", row.state)
    if row.stages is not None:
        state = say("runs.stages", done=row.stages[0], all=row.stages[1])
    if row.judged > 1:
        state += f" ({say('runs.judged', n=row.judged)})"
    cells = (
        Markup('<time datetime="{0}">{0}</time>').format(row.date),
        Markup('<span class="wb-badge">{}</span>').format(state),
        row.name,
        ", ".join(row.tags),
        duration(row.took_s, say.language) if row.took_s is not None else "",
        row.question,
    )
    return Markup('<tr data-run="{}">{}</tr>').format(
        row.name, Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells)
    )


def _texts(language: str) -> FigureTexts:
    if language not in LANGUAGES:
        raise ConfigError(f"language {language}", allowed=", ".join(LANGUAGES))
    return FigureTexts(language)


def _page(title: str, parts: Sequence[Part], say: FigureTexts) -> str:
    template = templates().get_template("list.html")
    return template.render(title=title, parts=parts, t=say, language=say.language, plotly_js="")
