"""Notebooks run headlessly over finished stages, and their export draws offline."""

from __future__ import annotations

import warnings

import nbformat
import pytest

from workbench.errors import ConfigError
from workbench.paths import NOTEBOOKS
from workbench.report.notebook_html import PLOTLY, export_notebooks, export_run
from workbench.runner.papermill_run import execute_with


@pytest.fixture
def executed(make_run, tmp_path):
    runs = [make_run().name, make_run(seed=2).name]
    target = tmp_path / "90.ipynb"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert execute_with(NOTEBOOKS / "90_compare_runs.ipynb", target, {"runs": runs}) is None
    return target


@pytest.mark.browser
def test_an_executed_notebook_is_exported_and_drawn_offline(executed, browser, tmp_path) -> None:
    document = nbformat.read(executed, as_version=4)
    outputs = [o for cell in document.cells for o in cell.get("outputs", [])]
    figures = [o.data for o in outputs if PLOTLY in o.get("data", {})]
    assert len(figures) == 2
    assert all(set(data) <= {PLOTLY, "text/plain"} for data in figures), "no copy of plotly.js"
    assert executed.stat().st_size < 1_000_000

    page_file = export_notebooks([executed, executed], tmp_path / "page.html", "twice")
    text = page_file.read_text()
    assert text.count('id="plotly-library"') == 1
    assert "cdn" not in text.split('id="plotly-library"')[0]
    requests, complaints = [], []
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(page_file.as_uri())
    page.wait_for_function(
        "() => document.querySelectorAll('.js-plotly-plot > .plot-container').length === 4",
        timeout=30_000,
    )
    assert requests == [page_file.as_uri()]
    assert complaints == []
    assert page.locator("table").count() >= 3
    context.close()


def test_outputs_are_text_unless_they_are_tables_images_or_figures(tmp_path) -> None:
    v4 = nbformat.v4
    outputs = [
        v4.new_output("stream", name="stdout", text="<b>plain</b>"),
        v4.new_output(
            "display_data", data={"text/html": "<script>x()</script>", "text/plain": "t"}
        ),
        v4.new_output("error", ename="StageError", evalue="<i>no</i>", traceback=[]),
    ]
    document = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Title\n\n<script>y()</script>\n\n| a |\n|---|\n| 1 |"),
            v4.new_code_cell("1 < 2", outputs=outputs),
        ]
    )
    source = tmp_path / "small.ipynb"
    nbformat.write(document, source)
    text = export_notebooks([source], tmp_path / "page.html", "small").read_text()
    body = text.split("<body>")[1]
    assert body.count("<script>") == 1 and body.rstrip().endswith("</script>\n</body>\n</html>")
    assert not any(given in body for given in ("x()</script>", "y()</script>", "<b>plain", "<i>no"))
    assert "StageError: &lt;i&gt;no" in body
    assert "<td>1</td>" in body and "1 &lt; 2" in body
    assert "plotly-library" not in text


def test_what_is_no_notebook_is_refused(make_run, tmp_path) -> None:
    run = make_run()
    with pytest.raises(ConfigError, match="has no executed notebooks"):
        export_run(run)
    run.notebooks.mkdir()
    (run.notebooks / "01_page.ipynb").write_text("not json")
    with pytest.raises(ConfigError, match="cannot be read as a notebook"):
        export_run(run)


def test_a_run_s_notebooks_are_one_page_in_their_order(make_run, tmp_path) -> None:
    run = make_run()
    run.notebooks.mkdir()
    for name in ("02_second", "01_first", ".03_half.partial"):
        cell = nbformat.v4.new_markdown_cell(f"# {name}")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), run.notebooks / f"{name}.ipynb")
    page = export_run(run)
    assert page == run.folder / "notebooks.html"
    text = page.read_text()
    assert 0 < text.index("<h1>01_first") < text.index("<h1>02_second") and "03_half" not in text
    with pytest.raises(ConfigError, match="a file in a folder that can be written"):
        export_run(run, tmp_path)
