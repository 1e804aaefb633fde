"""Which choices each figure offers, from what its record holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.records.stage_record import StageRecord

ALL = ""
"""Of a box with every option: no choice is made."""
METRIC_FIGURES = ("quality", "accuracy", "speed", "under_load", "throughput", "memory", "energy")


@dataclass(frozen=True)
class Choice:
    """One control. name: the keyword it sets. widget: makes it, from the value to begin with.
    value: what the keyword gets; None leaves it out. pilot: lines of the pilot that say the same.
    """

    name: str
    widget: Callable[[Any], Any]
    value: Callable[[Any], Any]
    pilot: Callable[[Any], list[str]] = lambda _: []


def choices(figure: str, record: StageRecord) -> list[Choice]:
    """Those of ``stage.figure`` that this record has something to choose from for."""
    name = figure.partition(".")[2]
    if record.stage == "measure_ab" and name in METRIC_FIGURES:
        return _of_metrics(record)
    found = OFFERED.get(figure)
    return found(record) if found else []


def _of_metrics(record: StageRecord) -> list[Choice]:
    arms = list(dict.fromkeys(m.labels["arm"] for m in record.metrics if "arm" in m.labels))
    classes = list(dict.fromkeys(m.labels["class"] for m in record.metrics if "class" in m.labels))
    return [
        _several("arms", arms, lambda arms: [f"--set 'measure_ab.arms=[{', '.join(arms)}]'"]),
        _several("classes", classes, _pilot_classes),
        _on_off("intervals"),
    ]


def _pilot_classes(classes: list[str]) -> list[str]:
    tokens = [name.partition("_")[2] for name in classes if name.startswith("interactive_")]
    return [f"--set 'measure_ab.interactive_output_tokens=[{', '.join(tokens)}]'"] if tokens else []


def _of_load(record: StageRecord) -> list[Choice]:
    rows = record.table("windows")
    last = float(rows["start_s"].max()) + 60.0 if len(rows) else 60.0
    window = Choice(
        "within_s",
        lambda now: _range("seconds", last, now),
        lambda ends: None if ends == (0.0, last) else [round(end) for end in ends],
        lambda ends: [
            f"--set profile_load.piece=window --set profile_load.piece_start_s={ends[0]:g} "
            f"--set deploy_rollback.duration_s={ends[1] - ends[0]:g}"
        ],
    )
    found = [window, _several("classes", sorted(rows["class"].unique()))]
    if "profile" in record.artefacts:
        pieces = ["typical", "peak"]
        found.append(_one_of("piece", pieces, lambda piece: [f"--set profile_load.piece={piece}"]))
    return found


def _of_histograms(record: StageRecord) -> list[Choice]:
    if "histograms" not in record.tables:
        return []
    rows = record.table("histograms")
    steps = [int(step) for step in sorted(rows["step"].unique())]
    return [
        _one_of("layer", list(rows["layer"].unique())),
        _one_of("step", steps, lambda _: [f"--set train.evaluations={len(steps)}"]),
    ]


def _of_front(record: StageRecord) -> list[Choice]:
    """The budget that the plan is made under: of quality, or of size where it comes first."""
    from workbench.figures.hybrid_plan_front import predicted, trained_with_its_plan

    if (plans := predicted(record)).empty:
        return []
    first = trained_with_its_plan(record)
    name, column = ("max_size_ratio", "size_ratio") if first else (
        "max_quality_loss", "quality_loss")  # fmt: skip
    chosen = plans.loc[plans["chosen"], column]
    begin = float(chosen.iloc[0] if len(chosen) else plans[column].median())

    def slider(now: float | None) -> Any:
        import ipywidgets

        return ipywidgets.SelectionSlider(
            options=stops, value=min(stops, key=lambda stop: abs(stop - (now or begin))),
            description="budget", continuous_update=True,
        )  # fmt: skip

    # A stop a plan: rounded up, so that the plan itself is within its stop.
    stops = sorted({math.ceil(value * 10_000) / 10_000 for value in plans[column]})
    return [
        Choice(name, slider, float, lambda value: [f"--set hybrid_plan.{name}={max(value, 0):g}"])
    ]


def _of_answers(record: StageRecord) -> list[Choice]:
    if "prompts" not in record.tables:
        return []
    rows = record.table("prompts")
    return [
        _one_of("prompt", list(rows["prompt"].unique()), first="the first"),
        _several("shown_arms", list(rows["arm"].unique())),
    ]


OFFERED: dict[str, Callable[[StageRecord], list[Choice]]] = {
    "profile_load.rate": _of_load,
    "profile_load.lengths": _of_load,
    "profile_load.shapes": _of_load,
    "train_qat.histograms": _of_histograms,
    "hybrid_plan_front.front": _of_front,
    "measure_ab_own.answers": _of_answers,
}


def _several(
    name: str, options: list[str], pilot: Callable[[Any], list[str]] = lambda _: []
) -> Choice:
    """All of them chosen is no choice."""

    def widget(now: list[str] | None) -> Any:
        import ipywidgets

        return ipywidgets.SelectMultiple(
            options=options, value=tuple(now or options), description=name,
            rows=min(6, max(2, len(options))),
        )  # fmt: skip

    return Choice(
        name, widget, lambda got: list(got) if 0 < len(got) < len(options) else None, pilot
    )


def _one_of(
    name: str,
    options: list[Any],
    pilot: Callable[[Any], list[str]] = lambda _: [],
    first: str = "all",
) -> Choice:
    """first: what the box says where nothing is chosen."""

    def widget(now: Any) -> Any:
        import ipywidgets

        # A value of None would leave the box blank.
        return ipywidgets.Dropdown(
            options=[(first, ALL), *((str(option), option) for option in options)],
            description=name, value=ALL if now is None else now,
        )  # fmt: skip

    return Choice(name, widget, lambda got: None if got == ALL else got, pilot)


def _on_off(name: str) -> Choice:
    def widget(now: bool | None) -> Any:
        import ipywidgets

        return ipywidgets.Checkbox(value=now is not False, description=name, indent=False)

    return Choice(name, widget, lambda on: None if on else False)


def _range(name: str, last: float, now: list[float] | None) -> Any:
    import ipywidgets

    return ipywidgets.FloatRangeSlider(
        value=tuple(now or (0.0, last)), min=0.0, max=last, step=max(1.0, last / 200),
        description=name, readout_format=".0f", continuous_update=False,
    )  # fmt: skip
