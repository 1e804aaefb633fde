"""Notebook 90's choice of runs: its figures and tables are made again for the runs chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.errors import WorkbenchError
from workbench.report.compare import Comparison, compare_runs
from workbench.widgets.headless import interactive
from workbench.widgets.pickers import runs_picker
from workbench.widgets.place import Place
from workbench.widgets.view import shown_text

SHOWN: list[tuple[Place, Callable[[Comparison], Any]]] = []
"""Places of the notebook's outputs, and what fills them."""


def comparison_picker(found: Comparison) -> None:
    """The picker, above all that it changes."""
    import ipywidgets
    from IPython.display import display

    SHOWN.clear()
    said = ipywidgets.HTML()

    def chosen(names: list[str]) -> None:
        try:
            other = compare_runs(names)
        except WorkbenchError as error:
            said.value = shown_text(str(error))
            return
        said.value = ""
        for place, draw in SHOWN:
            place.show(draw(other))

    display(ipywidgets.VBox([runs_picker(found.runs, chosen), said]))


def show_runs(draw: Callable[..., Any], found: Comparison, language: str = "en") -> Any:
    """``draw(found, language)``, made again when other runs are picked; headless, as it is."""
    if not interactive():
        return draw(found, language)
    if draw.__name__ == "every_figure":
        _searchable(draw, found, language)
        return None
    SHOWN.append((Place(draw(found, language)), lambda other: draw(other, language)))
    return None


def _searchable(draw: Callable[..., Any], found: Comparison, language: str) -> None:
    """The table of every figure with a search field above it."""
    import ipywidgets
    from IPython.display import display

    search = ipywidgets.Text(description="search", placeholder="words of a row")
    text = ipywidgets.HTML(shown_text("show_runs(figures.every_figure, found)"))
    now = [found]
    display(ipywidgets.VBox([search, text]))
    place = Place(draw(found, language))

    def drawn(other: Comparison) -> Any:
        now[0] = other
        return draw(other, language, search=search.value)

    search.observe(lambda _: place.show(drawn(now[0])), names="value")
    SHOWN.append((place, drawn))
