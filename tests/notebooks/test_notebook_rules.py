"""Source notebooks are thin: parameters, one call, a few figures, and no outputs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys

import nbformat
import pytest

from workbench.paths import NOTEBOOKS
from workbench.roadmap import STAGES
from workbench.study.run import STUDIES

FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
STAGE_FILES = {stage.notebook: stage.name for stage in STAGES.values()}
WIDGETS = {"show", "show_runs", "prompt_box", "gate_limits"}
"""What shows a figure with its controls, or controls of its own: workbench/widgets."""
STUDY_FILES = {f"{91 + place}_study_{name}.ipynb": name for place, name in enumerate(STUDIES)}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def notebook(request):
    return request.param, nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def code_cells(document) -> list:
    return [cell for cell in document.cells if cell.cell_type == "code"]


def test_there_is_one_for_each_stage_and_study_and_one_to_compare() -> None:
    assert {path.name for path in FILES} == {*STAGE_FILES, "90_compare_runs.ipynb", *STUDY_FILES}


def test_they_are_valid_and_clean(notebook) -> None:
    _, document = notebook
    nbformat.validate(document)
    assert (document.nbformat, document.nbformat_minor) == (4, 5)
    assert document.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in document.cells}) == len(document.cells)
    for cell in code_cells(document):
        assert cell.outputs == [] and cell.execution_count is None


def test_nothing_is_defined_or_installed_in_them(notebook) -> None:
    _, document = notebook
    for cell in code_cells(document):
        assert not re.search(r"^\s*[!%]|pip install|conda ", cell.source, re.MULTILINE)
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(
                node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For)
            )


def test_the_parameters_cell_comes_first_and_holds_plain_values(notebook) -> None:
    path, document = notebook
    first, *others = code_cells(document)
    assert first.metadata.tags == ["parameters"]
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    values = {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse(first.source).body}
    if path.name in STAGE_FILES:
        assert values.keys() == {"pilot", "overrides", "run_folder"}
        assert (NOTEBOOKS / values["pilot"]).exists()
    elif path.name in STUDY_FILES:
        assert values == {
            "pilot": f"../pilots/study_{STUDY_FILES[path.name]}.yaml",
            "overrides": [],
            "run_folder": None,
        }
        assert (NOTEBOOKS / values["pilot"]).exists()
    else:
        assert values == {"runs": []}


def test_one_call_into_the_library_and_a_few_figures(notebook) -> None:
    path, document = notebook
    cells = code_cells(document)
    calls = [
        node.func
        for cell in cells
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call)
    ]
    stage_calls = [f for f in calls if isinstance(f, ast.Name) and f.id not in WIDGETS]
    called, figures = "compare_runs", "compare"
    if path.name in STAGE_FILES:
        called, figures = "stage", STAGE_FILES[path.name]
    elif path.name in STUDY_FILES:
        called, figures = "study", f"study_{STUDY_FILES[path.name]}"
    assert [f.id for f in stage_calls] == [called]
    module = importlib.import_module(f"workbench.figures.{figures}")
    drawn = [
        node.attr
        for cell in cells
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "figures"
    ]
    assert 2 <= len(drawn) <= 10
    known = (*module.FIGURES, *getattr(module, "TABLES", ()))
    assert set(drawn) <= {draw.__name__ for draw in known}
    for place, cell in enumerate(document.cells):
        if cell.cell_type == "code" and "figures." in cell.source:
            before = document.cells[place - 1]
            assert before.cell_type == "markdown" and len(before.source.splitlines()) >= 3
    if path.name in STAGE_FILES:
        assert f'stage("{STAGE_FILES[path.name]}", pilot, overrides, run_folder)' in cells[1].source
    if path.name in STUDY_FILES:
        assert f'study("{STUDY_FILES[path.name]}", pilot, overrides, run_folder)' in cells[1].source


def test_they_begin_with_a_purpose_and_end_with_what_to_do_next(notebook) -> None:
    _, document = notebook
    title, *purpose = [line for line in document.cells[0].source.splitlines() if line]
    assert title.startswith("# ")
    assert len(purpose) == 2 and purpose[1].startswith("Decides: ")
    advice, following = document.cells[-2].source, document.cells[-1].source
    assert advice.count("\n| ") >= 4
    (link,) = re.findall(r"\]\((\S+\.ipynb)\)", following)
    assert (NOTEBOOKS / link).exists()


def test_a_notebook_waits_for_no_library_that_its_stage_does_not_use() -> None:
    """Seven kernels start in a pilot: what every one of them imports is paid seven times."""
    code = "import sys, workbench.notebook; print(*{'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
