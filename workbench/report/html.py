"""``report.html``: one file that answers the pilot's question, offline.

The verdict comes first and can be read without knowing the field; what stands behind it
follows, down to the package versions. The page carries its styles, its figures and one copy
of plotly.js, and a content security policy that forbids it any request.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.files import write_text
from workbench.pilot.sections.base import language_of
from workbench.pilot.yaml_file import read_yaml
from workbench.records.run import open_folder
from workbench.records.stage_record import StageRecord
from workbench.report import views
from workbench.report.bill_view import load_bill
from workbench.report.card import verdict_card
from workbench.report.economy_views import economy_view
from workbench.report.environment_view import environment_view
from workbench.report.forecast import COST, COVERED, UNITS, forecast_lines
from workbench.report.own_view import own_view
from workbench.report.plotly_page import PageFigure, plotly_installed, plotly_js, templates
from workbench.report.roadmap_page import roadmap_html, roadmap_page
from workbench.report.trade_off import trade_off, trade_off_html
from workbench.roadmap import STAGES
from workbench.wording.glossary import Explainer
from workbench.wording.text import Texts

Draw = Callable[[StageRecord, str, tuple[str, ...]], list[PageFigure]]
"""Of a stage's record, in a language, the figures with these names, or all of them with none:
:func:`workbench.figures.page.stage_figures`."""


def write_html(
    run_folder: Path | str,
    draw: Draw,
    language: str | None = None,
    *,
    again: StageRecord | None = None,
) -> Path:
    """Write ``report.html`` of a run from its records, and return its path.

    draw: makes the figures; not called where plotly is not installed, and the page says so.
    language: ``en`` or ``ru``; None takes the pilot's ``report.language``. A run that is not
    finished gives a page as well, which says what is missing. again: a later judgement of the run,
    whose page it becomes, beside its record; the first one is shown in it. Raises ConfigError when
    the folder holds no run.
    """
    run = open_folder(Path(run_folder))
    records = run.records()
    pilot = read_yaml(run.folder / "pilot.yaml").values
    first = records.get("report")
    if again:
        pilot |= again.facts["second_judgement"]["words"]
        records["report"] = again
    settings: dict[str, Any] = pilot["report"]
    texts = Texts(language or settings["language"])
    drawing = plotly_installed()
    report = records.get("report")

    stages = []
    for name in STAGES:
        if name == "report":
            continue
        view = views.stage_view(name, records.get(name), texts)
        record = records.get(name) if drawing else None
        view["figures"] = draw(record, texts.language, ()) if record else []
        stages.append(view)

    card = verdict_card(run, texts, again)
    page = (
        templates()
        .get_template("report.html")
        .render(
            t=texts,
            explainer=Explainer(texts.language),
            run=run,
            pilot=pilot,
            second=views.second_judgement(again, first, texts) if again and first else None,
            later=[] if again else views.later_judgements(run, texts),
            judged=report is not None,
            card=card,
            question_language=language_of(card.question),
            roadmap=roadmap_html(roadmap_page(run, texts), texts, alone=False),
            verdict=views.verdict_view(records, texts),
            tiles=views.headlines(records, texts),
            picture=trade_off_html(trade_off(run, texts, again), texts, alone=False),
            plan=views.plan_view(run, records, texts),
            gates=views.gate_rows(report, texts) if report else [],
            claims=views.claim_groups(report, texts) if report else [],
            claim_figures=(draw(report, texts.language, ("claims",)) if report and drawing else []),
            forecast=_forecast(report, texts, draw if drawing else None),
            tables=views.result_tables(records, texts),
            own=own_view(records.get("measure_ab"), texts),
            missing=views.missing_rows(records, texts),
            sample_prices=views.sample_prices(report),
            economy=economy_view(report, texts),
            bill=(
                load_bill(report, settings["cost"]["requests_per_day"], texts) if report else None
            ),
            costs=(
                views.cost_rows(report, settings["cost"]["requests_per_day"], texts)
                if report
                else []
            ),
            stages=stages,
            environment=environment_view(run, texts),
            pilot_text=(run.folder / "pilot.yaml").read_text(encoding="utf-8"),
            plotly_js=plotly_js() if drawing else "",
        )
    )
    target = again.folder / run.report.name if again else run.report
    write_text(target, page)
    return target


def _forecast(report: StageRecord | None, texts: Texts, draw: Draw | None) -> dict[str, Any] | None:
    """What more training would bring; None of a run that trained nothing to judge."""
    if report is None or "forecast" not in report.facts:
        return None
    names = {*UNITS, COST, COVERED}
    return {
        "lines": forecast_lines(report, texts),
        "table": views.metric_table([m for m in report.metrics if m.name in names], texts),
        "figures": draw(report, texts.language, ("forecast",)) if draw else [],
    }
