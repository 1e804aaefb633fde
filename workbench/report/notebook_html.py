"""An executed notebook as one HTML file for people without Jupyter, offline.

The usual export asks CDNs for its scripts and shows plotly figures as blanks. Here each
output of plotly's mime type becomes a div and its JSON, drawn by one inlined copy of
plotly.js, and the page forbids itself any request. Text stays text: Markdown is rendered
without raw HTML, and of the rich outputs only tables (HTML of pandas) and images are taken.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from markdown_it import MarkdownIt
from markupsafe import Markup

from workbench.errors import ConfigError
from workbench.files import write_text
from workbench.paths import shown
from workbench.report.plotly_page import PageFigure, figure_spec, plotly_js, templates
from workbench.wording.text import Texts

PLOTLY = "application/vnd.plotly.v1+json"


def export_notebook(notebook: Path | str, target: Path | str | None = None) -> Path:
    """Write ``notebook`` as HTML and return the page's path.

    target: where to; None puts it beside the notebook with the suffix ``.html``.
    Raises ConfigError when the file is not a notebook.
    """
    source = Path(notebook)
    path = Path(target) if target else source.with_suffix(".html")
    try:
        document = nbformat.read(source, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise ConfigError(
            f"{shown(source)}: cannot be read as a notebook: {error}",
            allowed="an executed .ipynb, e.g. one below notebooks/ of a run's folder",
        ) from error
    cells = [_cell(cell, place) for place, cell in enumerate(document.cells)]
    drawn = any(output["figure"] for cell in cells for output in cell["outputs"])
    page = (
        templates()
        .get_template("notebook.html")
        .render(
            t=Texts(),
            title=source.stem,
            cells=cells,
            plotly_js=plotly_js() if drawn else "",
        )
    )
    write_text(path, page)
    return path


def _cell(cell: Any, place: int) -> dict[str, Any]:
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
    elif "<table" in (html := "".join(data.get("text/html", ""))):
        yield empty | {"html": Markup(html)}
    elif text := "".join(data.get("text/plain", "")):
        yield empty | {"text": text, "kind": "stream"}
