"""The studies' figures, drawn in both languages, and a study's notebook executed."""

from __future__ import annotations

import importlib
import shutil
import warnings
from pathlib import Path

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.errors import ConfigError
from workbench.notebook import study
from workbench.paths import NOTEBOOKS
from workbench.records.run import open_folder
from workbench.records.stage_record import StageRecord
from workbench.runner.papermill_run import execute_with
from workbench.study.parity import parity_width
from workbench.study.run import STUDIES
from workbench.study.size import slope_per_doubling
from workbench.widgets.pickers import run_picker
from workbench.wording.text import LANGUAGES

MODULES = {name: importlib.import_module(f"workbench.figures.study_{name}") for name in STUDIES}
DRAWERS = [
    pytest.param(name, draw, id=f"{name}.{draw.__name__}")
    for name, module in MODULES.items()
    for draw in module.FIGURES
]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("name", "draw"), DRAWERS)
def test_a_whole_study_is_drawn(
    records: dict[str, StageRecord], name: str, draw, language: str
) -> None:
    drawn = draw(records[name], language)
    assert isinstance(drawn, go.Figure)
    if (name, draw.__name__) == ("checkpoint", "ratios"):
        # Six steps make random weights better: there is no gap that a ratio could be a share of
        assert records[name].metrics[-1].value is None and len(drawn.layout.annotations) == 1
        return
    assert len(drawn.data) > 0
    assert drawn.layout.title.text
    assert any([drawn.layout.xaxis.title.text, drawn.layout.yaxis.title.text])
    assert "undefined" not in drawn.to_json()


@pytest.mark.parametrize(("name", "draw"), DRAWERS)
def test_an_empty_study_gives_a_reason(name: str, draw, tmp_path: Path) -> None:
    drawn = draw(StageRecord(f"study_{name}", tmp_path), "en")
    assert len(drawn.data) == 0
    assert "not measured" in drawn.layout.annotations[0].text


@pytest.mark.slow
def test_a_notebook_trains_and_shows_its_study(
    pilot_file: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recipe is left to train, in a process beside the kernel."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(finished))
    target = tmp_path / "91.ipynb"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        another = "study.recipe.arms.another={train: {finetune: {weight_decay: 0.05}}}"
        parameters = {"pilot": str(pilot_file), "overrides": ["study.seeds=[1]", another]}
        assert execute_with(NOTEBOOKS / "91_study_recipe.ipynb", target, parameters) is None
    document = nbformat.read(target, as_version=4)
    outputs = [o for cell in document.cells for o in cell.get("outputs", [])]
    assert sum("application/vnd.plotly.v1+json" in o.get("data", {}) for o in outputs) == 3
    assert target.stat().st_size < 1_000_000
    events = [path.read_text(encoding="utf-8") for path in finished.glob("*/*/events.jsonl")]
    assert any("5 of 6 arms are trained already" in text for text in events)


def test_a_study_of_another_run_is_shown_and_nothing_is_trained(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(finished))
    folder = next(finished.glob("*/*/stages/study_recipe/record.json")).parents[2]
    record = study("recipe", "no pilot is read", run_folder=folder)
    picker = run_picker("study_recipe", open_folder(folder), "x.yaml")
    runs, _ = picker.children[0].children
    assert record.folder.parents[1] == folder and open_folder(folder).name in runs.options
    empty = shutil.copytree(folder, tmp_path / "a" / "run", ignore=lambda *_: ["stages"])
    with pytest.raises(ConfigError, match="has no finished study_recipe"):
        study("recipe", "no pilot is read", run_folder=empty)


def test_parity_lies_where_the_gap_changes_its_sign() -> None:
    widths = np.array([64.0, 80.0, 96.0, 128.0])
    gaps = 0.3 * np.log(88.0 / widths)
    rows = np.stack([gaps, gaps - 10, gaps + 10, np.array([0.2, 0.1, 0.1, 0.0])])
    found = parity_width(widths, rows)
    assert found[0] == pytest.approx(88.0)
    assert np.isnan(found[1]) and np.isnan(found[2])
    assert found[3] == pytest.approx(128.0)


def test_the_trend_is_the_slope_for_each_doubling() -> None:
    sizes = np.array([1e5, 2e5, 8e5])
    values = 0.4 - 0.05 * np.log2(sizes / 1e5)
    assert slope_per_doubling(sizes, np.stack([values, values + 1])) == pytest.approx([-0.05] * 2)
