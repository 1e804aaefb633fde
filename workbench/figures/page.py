"""A stage's figures for the report's page, which is given this function and knows no other."""

from __future__ import annotations

import importlib
import json

from workbench.records.stage_record import StageRecord
from workbench.report.plotly_page import PageFigure, figure_spec


def stage_figures(
    record: StageRecord, language: str, names: tuple[str, ...] = ()
) -> list[PageFigure]:
    """All figures of a stage (or those in ``names``), drawn from its record.

    A figure that cannot be drawn is one sentence in its place: the page must come out. Needs
    plotly, which is imported here and not with the module.
    """
    from workbench.figures.theme import FigureTexts

    module = importlib.import_module(f"workbench.figures.{record.stage}")
    say = FigureTexts(language)
    figures = []
    for draw in module.FIGURES:
        name = draw.__name__
        if names and name not in names:
            continue
        key, place = f"{record.stage}.{name}", f"figure-{record.stage}-{name}"
        head = (place, say(f"{key}.title"), say(f"{key}.read"))
        try:
            figures.append(
                PageFigure(*head, figure_spec(json.loads(draw(record, language).to_json())))
            )
        except (KeyError, ValueError, TypeError) as error:
            why = say("page.figure_failed", error=f"{type(error).__name__}: {error}")
            figures.append(PageFigure(*head, error=why))
    return figures
