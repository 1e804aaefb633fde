"""Which run is looked at: a picker in every notebook, and one for several runs in 90.

A picker shows other records in the figures of this notebook; the parameters in its first cell
stay what they are, and the text below the picker says what to write there to keep the choice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench.paths import shipped_pilots
from workbench.records.run import Run, all_runs
from workbench.widgets import view
from workbench.widgets.view import shown_text


def run_picker(stage: str, run: Run, pilot: str) -> Any:
    """A dropdown of pilots and one of the runs that have finished ``stage``, for a notebook whose
    figures show ``run``."""
    import ipywidgets

    runs = [each for each in all_runs()[::-1] if each.record(stage)]
    by_name = {each.name: each for each in [run, *runs]}
    files = sorted(shipped_pilots().glob("*.yaml"))
    chosen_run = ipywidgets.Dropdown(options=list(by_name), value=run.name, description="run")
    chosen_pilot = ipywidgets.Dropdown(
        options=[("as in the parameters", ""), *((path.stem, str(path)) for path in files)],
        value="", description="pilot",
    )  # fmt: skip
    text = ipywidgets.HTML(shown_text(f'pilot = "{pilot}"'))

    def chose_run(change: dict[str, Any]) -> None:
        other = by_name[change["new"]]
        if (record := other.record(stage)) is not None:
            for shown in view.VIEWS:
                if shown.record.stage == stage:
                    shown.take(record)
        text.value = shown_text(f'run_folder = "{_relative(other.folder)}"')

    def chose_pilot(change: dict[str, Any]) -> None:
        path = change["new"] or pilot
        text.value = shown_text(
            f'pilot = "{_relative(Path(path)) if change["new"] else path}"\n'
            "# in the first cell; then Restart & Run All begins that pilot, or goes on with it"
        )

    chosen_run.observe(chose_run, names="value")
    chosen_pilot.observe(chose_pilot, names="value")
    return ipywidgets.VBox([ipywidgets.HBox([chosen_run, chosen_pilot]), text])


def show_run_picker(stage: str, run: Run, pilot: str) -> None:
    """The picker in a notebook's output; figures of an earlier execution are forgotten."""
    from IPython.display import display

    view.VIEWS.clear()
    display(run_picker(stage, run, pilot))


def runs_picker(runs: Sequence[str], compare: Callable[[list[str]], None]) -> Any:
    """A list of runs to choose several of, with a search field.

    compare: called with the names chosen, the reference first.
    """
    import ipywidgets

    names = [run.name for run in sorted(all_runs(), key=lambda run: run.folder.name)[::-1]]
    chosen = ipywidgets.SelectMultiple(
        options=names, value=tuple(runs), description="runs", rows=min(8, max(3, len(names))),
        layout={"width": "32em"},
    )  # fmt: skip
    search = ipywidgets.Text(
        description="search", placeholder="part of a name", continuous_update=True
    )
    text = ipywidgets.HTML(shown_text(f"runs = {list(runs)!r}"))

    def searched(change: dict[str, Any]) -> None:
        kept = list(chosen.value)
        found = [name for name in names if change["new"].lower() in name.lower()]
        chosen.options = [*kept, *(name for name in found if name not in kept)]
        chosen.value = tuple(kept)

    def chose(change: dict[str, Any]) -> None:
        # The list gives them in its order, newest first; the reference is the oldest.
        now = sorted(change["new"], key=lambda name: name.rpartition("/")[2])
        text.value = shown_text(f"runs = {now!r}")
        if len(now) > 1:
            compare(now)

    search.observe(searched, names="value")
    chosen.observe(chose, names="value")
    return ipywidgets.VBox([search, chosen, text])


def _relative(path: Path) -> str:
    """As it is written in a notebook, which is run in its own folder."""
    return os.path.relpath(path)
