"""A training as it happens, read from the run's event stream.

The training runs in a process of its own, and all that is shown comes from ``events.jsonl``. So a
panel can be closed and opened again, from the same notebook or another one, and shows the whole
training each time; interrupting the cell ends the looking, not the training.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import plotly.graph_objects as go
import psutil

from workbench.errors import StageError
from workbench.figures.theme import ARM_COLOURS, GREY, FigureTexts, figure
from workbench.records.events import follow
from workbench.records.run import Run
from workbench.records.terminal import clock
from workbench.runner.stage_process import start
from workbench.widgets.place import Place

STAGE = "train_qat"
REFRESH_S = 1.0
TASK = "train "
"""How the stage's task of an arm begins."""


class WatchedTraining:
    """What the events have said about a training so far.

    losses: arm -> steps and nats per token. pid: of the process at work; None if it is not known.
    """

    def __init__(self) -> None:
        self.losses: dict[str, tuple[list[int], list[float]]] = {}
        self.flips: float | None = None
        self.step: dict[str, Any] = {}
        self.state = "waiting"
        self.text = self.key = ""
        self.pid: int | None = None
        self.began = 0.0

    def take(self, event: dict[str, Any]) -> None:
        """One event of any stage; those of others are left out."""
        if event.get("stage") != STAGE:
            return
        kind = event["kind"]
        if kind == "started":
            if event.get("key") != self.key:
                self.losses, self.flips, self.step = {}, None, {}
            self.key, self.pid, self.began = event.get("key", ""), event.get("pid"), event["time"]
        if kind in ("started", "finished", "failed"):
            self.state, self.text = kind, str(event.get("text") or "")
        if "flip_rate" in event:
            self.flips = event["flip_rate"]
        if kind != "step":
            return
        self.step = event
        if event["task"].startswith(TASK) and "loss" in event:
            steps, losses = self.losses.setdefault(event["task"].removeprefix(TASK), ([], []))
            # A training that goes on from a checkpoint repeats the steps after it.
            while steps and steps[-1] >= event["done"]:
                steps.pop(), losses.pop()
            steps.append(event["done"])
            losses.append(event["loss"])

    @property
    def over(self) -> bool:
        return self.state in ("finished", "failed")

    def at_work(self) -> bool:
        """Whether the process that began it is still there, and is that process."""
        try:
            alive = self.pid is not None and psutil.Process(self.pid).create_time() <= self.began
        except psutil.Error:
            return False
        return self.state == "started" and alive

    def line(self) -> str:
        """Where it stands, in one line: step, rate, time left, flips, memory."""
        if not self.step:
            return f"{STAGE}: {self.state}"
        parts = [f"{self.step['task']} {self.step['done']}/{self.step['total']}"]
        if self.step.get("rate_per_s"):
            parts.append(f"{self.step['rate_per_s']:.3g} {self.step['unit']}/s")
        if self.step.get("left_s"):
            parts.append(f"{clock(self.step['left_s'])} left")
        for arm, (_, losses) in self.losses.items():
            parts.append(f"{arm.replace('_', ' ')} loss {losses[-1]:.3f}")
        if self.flips is not None:
            parts.append(f"{100 * self.flips:.2g} % of weights flipped")
        memory = self.memory_gb()
        if memory is not None and not self.over:
            parts.append(f"{memory:.2f} GB")
        return f"{self.state}: " + " · ".join(parts)

    def memory_gb(self) -> float | None:
        """Of the process at work; None where it is gone or unknown."""
        try:
            return psutil.Process(self.pid).memory_info().rss / 1e9 if self.pid else None
        except psutil.Error:
            return None

    def figure(self) -> go.Figure:
        """Loss of both arms over their steps, as far as they have come."""
        say = FigureTexts()
        drawn = figure(say, say("train_qat.loss.title"), say("axis.step"), say("axis.loss"))
        for arm, (steps, losses) in self.losses.items():
            drawn.add_scatter(
                x=steps, y=losses, mode="lines", name=say.label("arm", arm),
                line={"color": ARM_COLOURS.get(arm, GREY), "width": 2},
            )  # fmt: skip
        return drawn


def so_far(run: Run) -> WatchedTraining:
    """What the run's events say of its training now."""
    training = WatchedTraining()
    for event in follow(run.events, None) if run.events.exists() else ():
        training.take(event)
    return training


def watch(
    run: Run, gone: Callable[[WatchedTraining], bool], every_s: float = REFRESH_S
) -> Iterator[WatchedTraining]:
    """The training of ``run`` again and again as it goes, from its beginning until ``gone``."""
    training, last = WatchedTraining(), 0.0
    for event in follow(run.events, lambda: gone(training)):
        training.take(event)
        if time.monotonic() - last > every_s:
            last = time.monotonic()
            yield training
    yield training


def stop_and_keep(training: WatchedTraining) -> str:
    """End the training as Ctrl-C would; its checkpoints stay and it goes on from the last one."""
    if training.pid is None or training.over:
        return "nobody is at work"
    try:
        os.kill(training.pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError) as error:
        return f"process {training.pid} cannot be stopped: {error.strerror}"
    return f"process {training.pid} was asked to stop; run the cell again to go on from there"


def training_panel(run: Run) -> None:
    """Start the run's training if nobody is at it, and show it until it is over.

    Raises StageError when the cell is interrupted, with how to look again and how to stop.
    """
    child = None if so_far(run).at_work() else start(run, STAGE)

    def gone(training: WatchedTraining) -> bool:
        return not training.at_work() if child is None else child.poll() is not None

    panel = Panel()
    try:
        for training in watch(run, gone):
            panel.show(training)
    except KeyboardInterrupt:
        raise StageError(
            f"the training goes on in process {panel.training.pid}; only the looking was ended",
            allowed="closing the notebook as well: nothing is lost",
            next_step="run this cell again to watch it from its beginning; its button stops it, "
            f"or: kill {panel.training.pid}",
        ) from None


class Panel:
    """Line, figure and button, rewritten in place."""

    def __init__(self) -> None:
        import ipywidgets
        from IPython.display import display

        self.training = WatchedTraining()
        self._button = ipywidgets.Button(description="Stop and keep", icon="stop")
        self._line = ipywidgets.HTML()
        self._button.on_click(self._stop)
        display(ipywidgets.HBox([self._button, self._line]))
        self._place = Place(self.training.figure())

    def show(self, training: WatchedTraining) -> None:
        self.training = training
        self._line.value = f'<span class="workbench-live">{training.line()}</span>'
        self._button.disabled = training.over
        self._place.show(training.figure())

    def _stop(self, _: Any) -> None:
        self._line.value = stop_and_keep(self.training)
