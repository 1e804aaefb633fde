"""Gates that no figure of the run could ever answer, found before the run.

A gate's metric must be one that a stage records, and its labels must be some that this figure
comes with in a run of this pilot: a misspelt one would fit nothing, and "not measured" would be
the answer after hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from workbench.model.presets import PRESETS
from workbench.pilot.problems import did_you_mean
from workbench.pilot.sections.report import Gate
from workbench.pilot.spec import Pilot
from workbench.wording.vocabulary import FIGURES, LabelSet

COUNTED = "gates_failed"
"""What the gates themselves make."""


def gate_problems(pilot: Pilot) -> list[str]:
    """One sentence for each slip, with the name of the field it stands in."""
    known = [name for name in FIGURES if name != COUNTED]
    problems = []
    for place, gate in enumerate(pilot.report.gates):
        field = f"report.gates.{place}"
        if gate.metric not in known:
            given = did_you_mean(gate.metric, known)
            problems.append(f"{field}.metric: got {gate.metric!r}{given}")
        elif lacking := _lacking(gate.metric, pilot):
            problems.append(f"{field}.metric: {gate.metric} needs {lacking}")
        else:
            problems += _label_problems(f"{field}.labels", gate, pilot)
    return problems


def _lacking(metric: str, pilot: Pilot) -> str:
    """The part of the pilot without which no stage records the figure; empty where it is there."""
    if FIGURES[metric].theme != "own_terms":
        return ""
    of_tasks = metric.startswith("task_")
    if of_tasks:
        return "" if pilot.tasks else "a file of questions: tasks: {NAME: {file: ...}}"
    return "" if pilot.prompts.file else "a file of prompts: prompts: {file: ...}"


def fits(labels: dict[str, str], metric: str, pilot: Pilot) -> bool:
    """Whether a figure of this name may have all of ``labels`` in a run of ``pilot``."""
    return any(
        all(n in own and _may_say(own, n, v, pilot) for n, v in labels.items())
        for own in FIGURES[metric].labels
    )


def _label_problems(field: str, gate: Gate, pilot: Pilot) -> Iterator[str]:
    sets = FIGURES[gate.metric].labels
    names = list(dict.fromkeys(name for own in sets for name in own))
    slips = 0
    for name, value in gate.labels.items():
        having = [own for own in sets if name in own]
        if not having:
            slips += 1
            hint = did_you_mean(name, names) if names else "; it has no labels"
            yield f"{field}.{name}: no label of {gate.metric}{hint}"
        elif not any(_may_say(own, name, value, pilot) for own in having):
            slips += 1
            allowed = [word for own in having for word in _words(own, name, pilot)]
            hint = did_you_mean(value, dict.fromkeys(allowed)) if allowed else ""
            yield f"{field}.{name}: got {value!r}{hint or f'; allowed: {having[0][name].text}'}"
    if not slips and not fits(gate.labels, gate.metric, pilot):
        told = "; or ".join(", ".join(own) for own in sets)
        given = ", ".join(f"{name}={value}" for name, value in gate.labels.items())
        yield f"{field}: no {gate.metric} has {given} together; allowed: {told}"


def _may_say(own: LabelSet, name: str, value: str, pilot: Pilot) -> bool:
    words = _words(own, name, pilot)
    return value in words if words else bool(re.fullmatch(own[name].open_to, value))


def _words(own: LabelSet, name: str, pilot: Pilot) -> list[str]:
    """The values that the label may have; none where only the machine decides."""
    if name == "shape":
        chosen = pilot.readiness.probe.shape
        own = ["checkpoint"] if pilot.model.checkpoint else []
        return [*own, *PRESETS] if chosen == "auto" else [chosen]
    of = own[name].of
    return list(of(pilot)) if of else []
