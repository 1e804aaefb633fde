"""The figure of a year's cost: headless it stands alone, in a notebook its sliders ask what if."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from workbench.economics.what_if import what_if as answer
from workbench.figures.what_if import DRAWS, what_if
from workbench.paths import HEADLESS
from workbench.pilot.sections.cost import Cost
from workbench.pilot.sections.profile_load import Slo
from workbench.records.stage_record import StageRecord
from workbench.report.economy import case_of, case_to_json

PREFILL = {"full_precision": 0.5, "ternary": 0.45}
DECODE = {("full_precision", 8): 4.0, ("ternary", 8): 2.5}


@pytest.fixture
def judged(tmp_path, timed_load):
    records = timed_load(tmp_path, PREFILL, DECODE)
    items = [{"name": "box", "what": "chassis", "price": 10_000.0}]
    cost = Cost.model_validate({"assumed_power_w": 800.0, "items": items})
    case, *_ = case_of(records, cost, Slo())
    record = StageRecord("report", tmp_path)
    record.facts["economy"] = {"case": case_to_json(case), "texts": [], "accelerators": True}
    return record, case


def heights(drawn: go.Figure) -> float:
    return sum(bar.y[0] for bar in drawn.data)


def test_a_headless_run_has_the_static_figure(judged, monkeypatch) -> None:
    record, case = judged
    monkeypatch.setenv(HEADLESS, "1")
    for language in ("en", "ru"):
        drawn = what_if(record, language)
        assert isinstance(drawn, go.Figure)
        year = answer(case, draws=DRAWS).figure("full_precision", "year").value
        assert heights(drawn) == pytest.approx(year)


def test_sliders_call_the_same_pure_function(judged, monkeypatch) -> None:
    """The tariff doubled by the slider is the year of the case with its prices doubled."""
    widgets = pytest.importorskip("ipywidgets")
    monkeypatch.delenv(HEADLESS, raising=False)
    record, case = judged
    box = what_if(record)
    sliders = {each.description: each for each in box.children if hasattr(each, "value")}
    assert list(sliders) == [
        "tariff, times", "PUE", "growth of the requests a year", "utilisation at the peak",
        "requests a day",
    ]  # fmt: skip
    assert isinstance(box.children[-1], widgets.Output)
    shown = []
    monkeypatch.setattr("workbench.figures.what_if.answered", lambda *a: shown.append(a) or "")
    sliders["tariff, times"].value = 2.0
    assert shown[-1][1]["price_scale"] == 2.0
    before = answer(case, draws=10).figure("full_precision", "energy").value
    after = answer(case, shown[-1][1], draws=10).figure("full_precision", "energy").value
    assert after == pytest.approx(2 * before)


def test_without_a_case_or_a_power_the_reason_stands_there(tmp_path) -> None:
    drawn = what_if(StageRecord("report", tmp_path))
    assert "not measured" in drawn.layout.annotations[0].text
    record = StageRecord("report", tmp_path)
    record.facts["economy"] = {"reason": "no arms were measured"}
    assert "no arms were measured" in what_if(record).layout.annotations[0].text
