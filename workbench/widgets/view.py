"""A figure with its controls: ``show(figures.speed, record)``.

A choice is a keyword of the call. The text under the controls is that call as chosen, to be
pasted into the cell, and where a field of the pilot says the same, that field. Nothing is kept
otherwise: run again, the cell shows what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from typing import Any

from workbench.records.stage_record import StageRecord
from workbench.widgets.choices import Choice, choices
from workbench.widgets.handles import name_handles
from workbench.widgets.headless import interactive
from workbench.widgets.place import Place

FILTERS = ("arms", "classes", "intervals")
"""Of figures that are drawn from a record's metrics: they choose among these."""
KEPT = "margin:0.2em 0;white-space:pre-wrap"
VIEWS: list[View] = []
"""Those shown in this kernel, which follow the run picker."""


def show(draw: Callable[..., Any], record: StageRecord, language: str = "en", **chosen: Any) -> Any:
    """``draw(record, language, **chosen)`` with its controls; headless, the figure alone.

    draw: of ``workbench.figures``. chosen: the choices to begin with, by name.
    """
    view = View(draw, record, language, chosen)
    if not interactive():
        return view.drawn()
    view.display()
    return None


class View:
    """One figure in its place, drawn again after each choice."""

    def __init__(
        self, draw: Callable[..., Any], record: StageRecord, language: str, chosen: dict[str, Any]
    ) -> None:
        self.draw, self.record, self.language = draw, record, language
        self.name = f"{draw.__module__.rpartition('.')[2]}.{draw.__name__}"
        self.chosen = chosen
        self._place: Place | None = None

    def drawn(self) -> Any:
        """The figure as chosen."""
        of_metrics = {name: value for name, value in self.chosen.items() if name in FILTERS}
        rest = {name: value for name, value in self.chosen.items() if name not in FILTERS}
        if self.record.stage == "profile_load" and "classes" in of_metrics:
            rest["classes"] = of_metrics.pop("classes")
        return self.draw(filtered(self.record, **of_metrics), self.language, **rest)

    def text(self, offered: list[Choice]) -> str:
        """What to write to keep the choice: the cell's call, and the pilot's fields."""
        kept = "".join(f", {name}={value!r}" for name, value in self.chosen.items())
        lines = [f"show(figures.{self.draw.__name__}, record{kept})"]
        lines += [
            line
            for choice in offered
            if choice.name in self.chosen
            for line in choice.pilot(self.chosen[choice.name])
        ]
        return "\n".join(lines)

    def display(self) -> None:
        """Controls, the text to keep, and the figure below them."""
        from IPython.display import display

        offered = choices(self.name, self.record)
        if offered:
            controls = self._controls(offered)
            display(controls)
            name_handles(controls)
        self._place = Place(self.drawn())
        VIEWS.append(self)

    def redraw(self) -> None:
        if self._place:
            self._place.show(self.drawn())

    def take(self, record: StageRecord) -> None:
        """Show another run's record of the same stage."""
        self.record, self.chosen = record, {}
        self.redraw()

    def _controls(self, offered: list[Choice]) -> Any:
        import ipywidgets

        text = ipywidgets.HTML()
        text.value = shown_text(self.text(offered))
        boxes = []
        for choice in offered:
            widget = choice.widget(self.chosen.get(choice.name))
            widget.observe(self._chooser(choice, offered, text), names="value")
            boxes.append(widget)
        row = ipywidgets.HBox(boxes, layout={"flex_flow": "row wrap", "grid_gap": "0 1em"})
        return ipywidgets.VBox([row, text])

    def _chooser(
        self, choice: Choice, offered: list[Choice], text: Any
    ) -> Callable[[dict[str, Any]], None]:
        def chose(change: dict[str, Any]) -> None:
            value = choice.value(change["new"])
            self.chosen.pop(choice.name, None)
            if value is not None:
                self.chosen[choice.name] = value
            try:
                self.redraw()
            except Exception as error:  # of a widget's callback nobody else would see it
                text.value = shown_text(f"{type(error).__name__}: {error}")
                return
            text.value = shown_text(self.text(offered))

        return chose


def filtered(
    record: StageRecord,
    arms: list[str] | None = None,
    classes: list[str] | None = None,
    intervals: bool = True,
) -> StageRecord:
    """The record with the figures of these arms and classes, with or without their intervals."""
    if arms is None and classes is None and intervals:
        return record

    def wanted(labels: dict[str, str]) -> bool:
        of_arm = arms is None or labels.get("arm", arms[0] if arms else "") in arms
        return of_arm and (classes is None or labels.get("class", "") in ("", *classes))

    kept = [metric for metric in record.metrics if wanted(metric.labels)]
    if not intervals:
        kept = [replace(metric, lo=None, hi=None) for metric in kept]
    return replace(record, metrics=kept)


def shown_text(text: str) -> str:
    """Text to paste, as HTML that can be selected."""
    return f'<pre class="workbench-keep" style="{KEPT}">{escape(text)}</pre>'
