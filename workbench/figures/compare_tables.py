"""Runs side by side in words: verdicts and headlines first, then what was asked differently, then
every shared figure with those that differ on top."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from workbench.figures.html_view import HtmlView
from workbench.figures.theme import FigureTexts
from workbench.records.metric import Metric
from workbench.records.run import Run, find_run
from workbench.records.run_list import run_lines
from workbench.report.card import verdict_card
from workbench.report.compare import ASKING, Comparison, asked_differently
from workbench.report.views import headlines
from workbench.wording.numbers import number, with_interval
from workbench.wording.text import Texts

ORDER = ("differs", "no interval", "within intervals", "same", "only in some", "not measured")
"""Of the states of a row: what differs comes first."""


def verdicts(found: Comparison, language: str = "en") -> HtmlView:
    """Of each run the verdict, a light for each gate and the headline figures; and whether the
    runs were asked the same question at all."""
    say = FigureTexts(language)
    runs = [find_run(name) for name in found.runs]
    cards = [verdict_card(run, say) for run in runs]
    tiles = [
        {(tile["title"], tile["of"]): tile for tile in headlines(run.records(), say)}
        for run in runs
    ]
    rows: list[list[str]] = [
        [say("compare.verdict"), *(card.state_name for card in cards)],
        [say("compare.begun"), *(run.header["created"][:16].replace("T", " ") for run in runs)],
        [say("page.question"), *(card.question for card in cards)],
    ]
    named = [
        {(light.title, light.of): f"{light.mark} {light.outcome_name}" for light in card.lights}
        for card in cards
    ]
    for key in dict.fromkeys(key for own in named for key in own):
        title = f"{key[0]} ({key[1]})" if key[1] else key[0]
        rows.append([title, *(own.get(key, say("compare.not_asked")) for own in named)])
    for key in dict.fromkeys(key for own in tiles for key in own):
        title = f"{key[0]} ({key[1]})" if key[1] else key[0]
        rows.append([title, *(_tile(own.get(key)) for own in tiles)])
    asked = [say.get(f"compare.asked.{it}", it) for it in asked_differently(found, runs)]
    warning = say("compare.other_question", fields=", ".join(asked)) if asked else ""
    return _table([say("compare.of"), *found.runs], rows, warning)


def settings(found: Comparison, language: str = "en") -> HtmlView:
    """The fields that differ, those that ask another question first."""
    say = FigureTexts(language)
    rows = [[str(cell) for cell in row] for row in found.settings.to_numpy()]
    rows.sort(key=lambda row: _section(row[0]) not in ASKING)
    if not rows:
        return _table([], [], say("compare.same_settings"))
    return _table([say("compare.setting"), *found.runs], rows)


def reasons(because: str, say: Texts) -> str:
    """What a difference may be because of, of a comparison's column ``because``."""
    return ", ".join(say(f"compare.because.{each}") for each in because.split(", ") if each)


def every_figure(found: Comparison, language: str = "en", *, search: str = "") -> HtmlView:
    """Every figure of the runs, those that differ first. search: only rows with all these words."""
    say = FigureTexts(language)
    rows = []
    for place, row in found.figures.iterrows():
        known = next(metric for metric in found.metrics[place] if metric)
        name = say.figure(known.name, known.labels)
        cells = [_cell(metric, say) for metric in found.metrics[place]]
        ratio = "" if row["ratio"] != row["ratio"] else number(row["ratio"], language)
        state = say(f"compare.state.{row['state']}")
        rows.append((row["state"], [name, *cells, ratio, state, reasons(row["because"], say)]))
    rows.sort(key=lambda row: ORDER.index(row[0]))
    words = search.lower().split()
    shown = [row for _, row in rows if all(word in " ".join(row).lower() for word in words)]
    head = [say("compare.figure"), *found.runs, say("compare.last_first"), "", say("compare.why")]
    said = say("compare.shown", shown=len(shown), all=len(rows))
    return _table(head, shown, said, shown=number(len(shown), language))


def runs_there_are(runs: Sequence[Run]) -> str:
    """The runs to choose from, a line each."""
    return "\n".join(run_lines(list(runs)))


def _section(setting: str) -> str:
    return setting.split(".")[0]


def _tile(tile: dict[str, str] | None) -> str:
    if tile is None:
        return ""
    interval = tile["note"] if tile["note"].startswith("[") else ""
    return " ".join(filter(None, (tile["value"], tile["unit"], interval)))


def _cell(metric: Metric | None, say: Texts) -> str:
    if metric is None or metric.value is None:
        return say("kind.not measured")
    value, interval = with_interval(metric.value, metric.lo, metric.hi, say.language)
    return " ".join(filter(None, (value, say.unit(metric.unit), interval)))


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], said: str = "", *, shown: str = ""
) -> HtmlView:
    """A table that scrolls where it is long, below a sentence. shown: the number in it that a page
    changes while it is searched."""
    text = "\n".join(filter(None, [said, *("  ".join(row) for row in rows)]))
    cell = Markup("<td>{}</td>").format
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(map(cell, row))) for row in rows
    )
    heads = Markup("").join(map(Markup('<th style="text-align:left">{}</th>').format, head))
    table = Markup(
        # One that scrolls must be reached by the keyboard too, and then needs a name.
        '<div tabindex="0" role="region" aria-label="{}" style="max-height:36em;overflow:auto">'
        "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(", ".join(filter(None, head)), heads, body)
    before, rows_shown, behind = said.partition(shown) if shown else (said, "", "")
    counted = Markup("<output>{}</output>").format(rows_shown) if shown else ""
    sentence = Markup("<p>{}{}{}</p>").format(before, counted, behind) if said else Markup("")
    return HtmlView(sentence + (table if rows else Markup("")), text)
