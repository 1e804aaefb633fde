"""How long a whole run will still take, as far as anything is known about it.

A stage is expected to take what it took in an earlier run of the same pilot on this machine, if
the same fields decided it; the stage at work also says how far it is. Where a stage has never run
here like that, the sum is a lower bound and is called one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import WorkbenchError
from workbench.pilot.resolve import ResolvedPilot
from workbench.pilot.yaml_file import read_yaml
from workbench.records.run import PILOT, Run, runs_in
from workbench.records.terminal import clock
from workbench.roadmap import STAGES, deciding, value_of
from workbench.stages.execute import finished
from workbench.stages.keys import stage_key

RUNS_LOOKED_AT = 5
"""The newest ones: each costs the reading of a pilot file."""


class TimeLeft:
    """Called with each event, says the time that is left in all; empty where none is running.

    expected: stage -> seconds, of the stages still to do, in their order; None: unknown.
    """

    def __init__(self, expected: Mapping[str, float | None]) -> None:
        self.expected = dict(expected)
        self._stage, self._began = "", 0.0

    def __call__(self, event: Mapping[str, Any]) -> str:
        stage = event["stage"]
        if stage not in self.expected or event["kind"] not in ("started", "step"):
            return ""
        if stage != self._stage or event["kind"] == "started":
            self._stage, self._began = stage, event["time"]
        names = list(self.expected)
        later = [self.expected[name] for name in names[names.index(stage) + 1 :]]
        now = self._left_of_stage(event)
        known = sum(s for s in later if s is not None) + (now[0] if now[0] is not None else 0.0)
        unknown = sum(s is None for s in later) + (not now[1])
        if unknown and not known:
            return "left in all: unknown, nothing like it was run here yet"
        if unknown:
            return f"at least {clock(known)} left in all, {unknown} of the stages unknown"
        return f"about {clock(known)} left in all"

    def _left_of_stage(self, event: Mapping[str, Any]) -> tuple[float | None, bool]:
        """(seconds, whether they are those of the whole stage and not of its task alone)."""
        task = event.get("left_s")
        whole = self.expected[event["stage"]]
        if whole is None or (left := whole - (event["time"] - self._began)) <= 0:
            return task, False
        return max(left, task or 0.0), True


def time_left(resolved: ResolvedPilot, run: Run, stages: Sequence[str]) -> TimeLeft:
    """Of ``stages`` in ``run``, as earlier runs of the pilot on this machine tell it."""
    expected: dict[str, float | None] = {
        name: None for name in stages if finished(name, resolved, run) is None
    }
    others = [each for each in runs_in(run.folder.parent) if each.folder != run.folder]
    for other in others[::-1][:RUNS_LOOKED_AT]:
        if not expected or None not in expected.values():
            break
        if other.header["machine"] != run.header["machine"]:
            continue
        for name, seconds in _took(resolved, run, other).items():
            if name in expected and expected[name] is None:
                expected[name] = seconds
    return TimeLeft(expected)


def _took(resolved: ResolvedPilot, run: Run, other: Run) -> dict[str, float]:
    """Stage -> seconds in ``other``, where the same fields decided it; taken over is at once."""
    try:
        values, records = read_yaml(other.folder / PILOT).values, other.records()
    except (WorkbenchError, OSError):
        return {}
    took = {}
    for name, record in records.items():
        if STAGES[name].adoptable and record.key == stage_key(name, resolved, run):
            took[name] = 0.0
        elif _alike(name, resolved.values, values):
            took[name] = record.duration_s
    return took


def _alike(stage: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    fields = deciding(stage) - {"seed", "report"}
    try:
        return all(value_of(ours, name) == value_of(theirs, name) for name in fields)
    except (KeyError, TypeError):  # a pilot of another version
        return False
