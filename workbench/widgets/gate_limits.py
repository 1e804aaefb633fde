"""The verdict under other limits: sliders that judge a run again in memory, at once.

What the run decided stays what it is: moving a limit after the figures are known proves less,
and the text below the sliders says how to have it written down as a second judgement.
"""

from __future__ import annotations

import shlex
import time
from typing import Any

from workbench.pilot.sections.report import Gate
from workbench.pilot.spec import Pilot
from workbench.records.run import Run, open_folder
from workbench.records.stage_record import StageRecord
from workbench.report.card import MARKS
from workbench.report.gates import GateResult, evaluate
from workbench.report.verdict import decide
from workbench.widgets.handles import name_handles
from workbench.widgets.headless import interactive
from workbench.widgets.view import shown_text
from workbench.wording.text import Texts

STEPS = 200
"""Of a slider, from end to end."""


def gate_limits(record: StageRecord, language: str = "en") -> Any:
    """Sliders for the limits of all gates; headless, the outcomes under the limits as they are."""
    what_if = GateLimits(open_folder(record.folder.parents[1]), language)
    if not interactive():
        return shown_as_is(what_if)
    what_if.display()
    return None


class GateLimits:
    """The gates of a run and its figures, judged again whenever a limit moves."""

    def __init__(self, run: Run, language: str = "en") -> None:
        self.run, self.texts = run, Texts(language)
        self.records = {name: own for name, own in run.records().items() if name != "report"}
        self.pilot: Pilot = run.resolved().pilot
        self.gates = list(self.pilot.report.gates)
        self.asked = list(self.gates)

    def judged(self) -> tuple[str, list[GateResult]]:
        """The decision and each gate's result under the limits as they stand."""
        results = evaluate(self.gates, self.records)
        return decide(results, self.records, self.pilot).decision, results

    def move(self, place: int, limit: float) -> None:
        """Give gate ``place`` another limit."""
        gate = self.gates[place]
        side = "at_least" if gate.at_most is None else "at_most"
        self.gates[place] = gate.model_copy(update={side: limit})

    def text(self) -> str:
        """The command that judges the run again by these limits, beside its first judgement."""
        if self.gates == self.asked:
            return "# the limits fixed before the run"
        gates = ", ".join(_flow(gate) for gate in self.gates)
        value = shlex.quote(f"report.gates=[{gates}]")
        return f"workbench report {shlex.quote(self.run.name)} --set {value}"

    def lines(self) -> list[str]:
        decision, results = self.judged()
        name = self.texts.get(f"decision.{decision}", decision)
        said = [f"{name}"]
        for result in results:
            outcome = "not measured" if result.value is None else result.outcome
            figure = self.texts.figure(result.metric, result.labels)
            rule = self.texts(f"page.{result.side}", limit=result.limit)
            said.append(f"{MARKS[outcome]} {self.texts(f'light.{outcome}')}  {figure}: {rule}")
        return said

    def display(self) -> None:
        import ipywidgets
        from IPython.display import display

        out = ipywidgets.HTML()
        kept = ipywidgets.HTML()

        def show() -> None:
            began = time.perf_counter()
            out.value = shown_text("\n".join(self.lines()))
            took_ms = 1e3 * (time.perf_counter() - began)
            kept.value = shown_text(f"{self.text()}\n# judged in {took_ms:.0f} ms")

        def mover(place: int) -> Any:
            def moved(change: dict[str, Any]) -> None:
                self.move(place, float(change["new"]))
                show()

            return moved

        sliders = []
        for place, gate in enumerate(self.gates):
            slider = ipywidgets.FloatSlider(
                **self._ends(gate), description=gate.metric, readout_format=".3g",
                style={"description_width": "16em"}, layout={"width": "38em"},
            )  # fmt: skip
            slider.observe(mover(place), names="value")
            sliders.append(slider)
        show()
        shown = ipywidgets.VBox([*sliders, out, kept])
        display(shown)
        name_handles(shown)

    def _ends(self, gate: Gate) -> dict[str, float]:
        """Of a slider: around the limit and the figure, whichever lies further out."""
        limit = gate.at_least if gate.at_most is None else gate.at_most
        values = [r.value for r in evaluate([gate], self.records) if r.value is not None]
        far = max([abs(limit or 0.0), *map(abs, values), 0.1]) * 2
        low = -far if min([limit or 0.0, *values]) < 0 else 0.0
        return {"value": limit or 0.0, "min": low, "max": far, "step": (far - low) / STEPS}


def shown_as_is(what_if: GateLimits) -> Any:
    """What a reader without a kernel sees."""
    from workbench.figures.html_view import HtmlView

    text = "\n".join([*what_if.lines(), what_if.text()])
    return HtmlView(shown_text(text), text)


def _flow(gate: Gate) -> str:
    """The gate as YAML in one line."""
    fields = gate.model_dump(exclude_defaults=True)
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in fields.items()) + "}"


def _scalar(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_scalar(own)}" for key, own in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}"
    return f'"{value}"'
