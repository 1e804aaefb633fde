"""The roadmap's page says of a run what its records say, and of an unfinished one what is ahead."""

from __future__ import annotations

import pytest

from workbench.figures.readiness import roadmap
from workbench.report.roadmap_page import CHECKS, roadmap_html, roadmap_lines, roadmap_page
from workbench.roadmap import STAGES
from workbench.wording.text import Texts


def ticks(run, stage: str) -> dict[str, str]:
    page = roadmap_page(run, Texts())
    names = dict(zip(STAGES, page.stages, strict=True))
    return dict(zip(CHECKS[stage], [check.tick for check in names[stage].checks], strict=True))


def test_checks_tick_themselves_from_the_records(make_run) -> None:
    run = make_run()
    assert ticks(run, "measure_ab")["quality"] == "done"
    assert ticks(run, "measure_ab")["energy"] == "missed"
    assert ticks(run, "deploy_rollback")["nothing_lost"] == "done"
    record = run.record("deploy_rollback")
    for metric in record.metrics:
        if metric.name == "lost_requests":
            record.metrics[record.metrics.index(metric)] = type(metric)(
                **{**vars(metric), "value": 2.0}
            )
    record.save()
    assert ticks(run, "deploy_rollback")["nothing_lost"] == "missed"
    assert ticks(make_run(energy=True, sequences=9), "measure_ab")["energy"] == "done"


def test_what_no_stage_has_shown_is_ahead(make_run) -> None:
    run = make_run(stages=("readiness",))
    assert set(ticks(run, "train_qat").values()) == {"ahead"}
    assert ticks(run, "readiness")["probe"] == "done"
    risks = {risk.title: risk for risk in roadmap_page(run, Texts()).risks}
    assert set(risks) == {
        "Spares", "Migration to other accelerators", "SDK and kernel support", "Data", "Quality"
    }  # fmt: skip
    assert risks["Quality"].level == "ahead"
    assert risks["Data"].level == "open"
    assert "Python’s own" in risks["Data"].shown


def test_the_register_says_what_the_gate_on_quality_says(make_run) -> None:
    held = make_run(gates="\n    - {metric: quality_gap_bits_per_byte, at_most: 9.0}\n")
    broken = make_run(gates="\n    - {metric: quality_gap_bits_per_byte, at_most: -9.0}\n", seed=9)
    levels = [roadmap_page(run, Texts()).risks[-1].level for run in (held, broken)]
    assert levels == ["held", "open"]


@pytest.mark.parametrize("language", ["en", "ru"])
def test_page_notebook_and_lines_say_the_same(shared_run, language: str) -> None:
    texts = Texts(language)
    page = roadmap_page(shared_run, texts)
    html, lines = str(roadmap_html(page, texts)), "\n".join(roadmap_lines(page, texts))
    assert html.count("data-tick=") == sum(len(checks) for checks in CHECKS.values())
    for risk in page.risks:
        assert risk.title in html and risk.title in lines and risk.do in lines
    assert repr(roadmap(shared_run.record("readiness"), language)) == lines
