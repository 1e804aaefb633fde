"""Executed notebooks as one HTML file for people without Jupyter, offline.

The usual export asks CDNs for its scripts and shows plotly figures as blanks. Here each
output of plotly's mime type becomes a div and its JSON, drawn by one inlined copy of
plotly.js, and the page forbids itself any request. Text stays text: Markdown is rendered
without raw HTML, and of the rich outputs only tables (HTML of pandas), the verdict card and
images are taken.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from markdown_it import MarkdownIt
from markupsafe import Markup

from workbench.errors import ConfigError
from workbench.files import write_text
from workbench.paths import shown
from workbench.records.run import Run
from workbench.report.plotly_page import PageFigure, figure_spec, plotly_js, templates
from workbench.wording.text import Texts

PLOTLY = "application/vnd.plotly.v1+json"


def export_run(run: Run, target: Path | None = None) -> Path:
    """Write the executed notebooks of ``run`` as one page, in their order; the page's path.

    target: where to; None takes ``notebooks.html`` in the run's folder.
    Raises ConfigError for a run without executed notebooks.
    """
    notebooks = sorted(run.notebooks.glob("[!.]*.ipynb"))
    if not notebooks:
        raise ConfigError(
            f"{run.name} has no executed notebooks",
            next_step="workbench run PILOT.yaml --notebooks executes them over finished stages",
        )
    return export_notebooks(notebooks, target or run.folder / "notebooks.html", run.name)


def export_notebooks(notebooks: Sequence[Path], target: Path, title: str) -> Path:
    """Write ``notebooks`` as one HTML page ``target``, which is returned.

    Raises ConfigError when one is not a notebook, or the page cannot be written.
    """
    cells = [
        _cell(cell, f"{number}-{place}")
        for number, source in enumerate(notebooks)
        for place, cell in enumerate(_read(source).cells)
    ]
    drawn = any(output["figure"] for cell in cells for output in cell["outputs"])
    page = (
        templates()
        .get_template("notebook.html")
        .render(t=Texts(), title=title, cells=cells, plotly_js=plotly_js() if drawn else "")
    )
    try:
        write_text(target, page)
    except OSError as error:
        raise ConfigError(
            f"{shown(target)}: {error.strerror}", allowed="a file in a folder that can be written"
        ) from error
    return target


def _read(source: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(source, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise ConfigError(
            f"{shown(source)}: cannot be read as a notebook: {error}",
            allowed="an executed .ipynb, e.g. one below notebooks/ of a run's folder",
        ) from error


def _cell(cell: Any, place: str) -> dict[str, Any]:
    text = "".join(cell.source)
    if cell.cell_type == "markdown":
        rendered = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
        return {"kind": "markdown", "text": Markup(rendered), "outputs": []}
    outputs = cell.get("outputs", []) if cell.cell_type == "code" else []
    return {
        "kind": cell.cell_type,
        "text": text,
        "outputs": [
            shown_output
            for number, output in enumerate(outputs)
            for shown_output in _output(output, f"figure-{place}-{number}")
        ],
    }


def _output(output: Any, place: str) -> Iterator[dict[str, Any]]:
    """One output in the richest form that needs no script from elsewhere."""
    empty: dict[str, Any] = {"figure": None, "html": "", "image": "", "text": "", "kind": ""}
    if output.output_type == "stream":
        yield empty | {"text": "".join(output.text), "kind": "stream"}
        return
    if output.output_type == "error":
        yield empty | {"text": f"{output.ename}: {output.evalue}", "kind": "error"}
        return
    data = output.get("data", {})
    if PLOTLY in data:
        spec = figure_spec(data[PLOTLY], keep_title=True)
        yield empty | {"figure": PageFigure(place, "", "", spec)}
    elif "image/png" in data:
        encoded = "".join(data["image/png"]).replace("\n", "")
        base64.b64decode(encoded, validate=True)
        yield empty | {"image": f"data:image/png;base64,{encoded}"}
    elif _is_shown(html := "".join(data.get("text/html", ""))):
        yield empty | {"html": Markup(html)}
    elif text := "".join(data.get("text/plain", "")):
        yield empty | {"text": text, "kind": "stream"}


def _is_shown(html: str) -> bool:
    """A table, or the verdict card; never what brings a script."""
    return ("<table" in html or 'class="wb-card' in html) and "<script" not in html.lower()
