"""Figures inside a page that needs no network: a div and its JSON, plotly.js inlined once.

Plotly's own HTML output asks a CDN for the library or repeats 4.9 MB in every figure. Here
the page carries the library once, packed, each figure is plain JSON in a ``script`` that no browser
executes, and ``templates/figures.js`` draws them all, in the colours of the page's theme.
Without plotly installed the page is written all the same, without figures.
"""

from __future__ import annotations

import base64
import gzip
import importlib
import importlib.util
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from workbench.wording.recorded import recorded

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class PageFigure:
    """One figure of a page. spec: its JSON, safe inside ``<script>``; error: why it is not
    drawn, with no spec then."""

    id: str
    title: str
    read: str
    spec: Markup | None = None
    error: str = ""


def plotly_installed() -> bool:
    return importlib.util.find_spec("plotly") is not None


@lru_cache(maxsize=1)
def plotly_js() -> Markup:
    """The library, gzipped and in base64, to be inlined exactly once: 1.9 MB in place of 4.8.

    ``templates/figures.js`` unpacks it, with what every browser has had since 2023.
    """
    offline = importlib.import_module("plotly.offline")
    packed = gzip.compress(offline.get_plotlyjs().encode(), mtime=0)
    return Markup(base64.b64encode(packed).decode())


def figure_spec(figure: dict[str, Any], *, keep_title: bool = False) -> Markup:
    """A figure's plotly JSON for a ``script`` element; the page writes the title itself."""
    layout = dict(figure.get("layout", {}))
    if not keep_title and "title" in layout:
        layout.pop("title")
        layout["legend"] = {**layout.get("legend", {}), "y": 1}
    text = json.dumps({"data": figure.get("data", []), "layout": layout}, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


@lru_cache(maxsize=1)
def templates() -> Environment:
    """The templates, with everything escaped that is not marked as safe."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = _asset
    environment.filters["explained"] = _explained
    environment.filters["told"] = _told
    environment.filters["told_text"] = _told_text
    return environment


@pass_context
def _explained(context: Context, part: str) -> Markup:
    """A finished part of a page with its words marked by the page's ``explainer``."""
    return Markup(context["explainer"](part))


@pass_context
def _told(context: Context, sentence: str) -> Markup:
    """A recorded sentence in the page's language; marked as English where no pattern knows it."""
    said = recorded(sentence, context["t"])
    return (
        escape(said.text) if said.known else Markup('<span lang="en">{}</span>').format(said.text)
    )


@pass_context
def _told_text(context: Context, sentence: str) -> str:
    """The same for an attribute."""
    return recorded(sentence, context["t"]).text


def _asset(name: str) -> Markup:
    """A stylesheet or script of the templates folder, to be inlined."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
