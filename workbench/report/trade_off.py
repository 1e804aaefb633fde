"""The one picture of the first screen: what each arm loses in quality for its speed and memory.

Two halves share the vertical axis, quality lost against full precision: on the left against the
speed-up of one class of requests, on the right against the memory saved. Full precision is where
the axes begin; an interval is a thin line. A gate is a line where it judges what is drawn; one that
judges something else (the probe's shape, another class) is named below and has none. An arm
without a figure is left out of that half and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from workbench.records.metric import Metric
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.report.gates import GateResult, evaluate, recorded_results
from workbench.report.plotly_page import templates
from workbench.report.trade_off_svg import GateLine, Half, Mark, half_svg
from workbench.wording.labels import ARMS
from workbench.wording.numbers import number
from workbench.wording.text import Texts

QUALITY, SPEED, MEMORY = "quality_gap_bits_per_byte", "speedup", "memory_ratio"
BASELINE = "full_precision"
TRAINED = {"source": "trained"}
NEAR = {
    QUALITY: (QUALITY,),
    SPEED: (SPEED, "decode_speedup", "prefill_speedup"),
    MEMORY: (MEMORY, "model_memory_mb"),
}
"""Figures whose gates a reader looks for on an axis, whether or not they judge what it shows."""


@dataclass(frozen=True)
class TradeOff:
    """halves: drawn, as SVG. alt: every arm and gate in words; read: how to read it; notes: what
    is not drawn, and why."""

    title: str
    halves: list[Markup] = field(default_factory=list)
    alt: str = ""
    read: str = ""
    notes: list[str] = field(default_factory=list)


def trade_off(run: Run, texts: Texts, again: StageRecord | None = None) -> TradeOff | None:
    """The picture of a run; None where no arm has both quality and speed or memory."""
    records = run.records()
    measured = records.get("measure_ab")
    if measured is None:
        return None
    report = again or records.get("report")
    results = (
        recorded_results(report) if report else evaluate(run.resolved().pilot.report.gates, records)
    )
    shown_class = _class(measured, results)
    found = {
        QUALITY: _by_arm(measured, QUALITY),
        SPEED: _by_arm(measured, SPEED, **{"class": shown_class}),
        MEMORY: _by_arm(measured, MEMORY),
    }
    drawn = {x: _drawable(found[x], found[QUALITY]) for x in (SPEED, MEMORY)}
    if not any(drawn.values()):
        return None
    titles = {
        QUALITY: texts("trade.quality"),
        SPEED: texts("trade.speed", of=texts.label("class", shown_class)),
        MEMORY: texts("trade.memory"),
    }
    lines = {name: _lines(name, results, shown_class, texts) for name in titles}
    halves = [
        half_svg(
            Half(
                x_title=titles[name],
                y_title=titles[QUALITY],
                marks=[
                    Mark(arm, texts.label("arm", arm), x, y) for arm, (x, y) in drawn[name].items()
                ],
                baseline=texts.label("arm", BASELINE),
                x_lines=lines[name],
                y_lines=lines[QUALITY],
            ),
            texts.language,
        )
        for name in (SPEED, MEMORY)
        if drawn[name]
    ]
    notes = (
        _left_out(found, texts)
        + _hybrid(records, found, texts)
        + _other_gates(results, shown_class, texts)
    )
    return TradeOff(
        title=texts("trade.title"),
        halves=halves,
        alt=_alt(found, lines, texts),
        read=texts("trade.read"),
        notes=notes,
    )


def trade_off_html(picture: TradeOff | None, texts: Texts, *, alone: bool) -> Markup:
    """The picture as HTML; alone: with its own styles, for a notebook."""
    template = templates().get_template("trade_off.html")
    return Markup(template.render(picture=picture, t=texts, alone=alone) if picture else "")


def trade_off_text(picture: TradeOff | None, texts: Texts) -> str:
    """The same in words, for a terminal."""
    if picture is None:
        return texts("trade.none")
    return "\n".join([picture.title, picture.alt, *picture.notes])


def _by_arm(record: StageRecord, name: str, **labels: str) -> dict[str, Metric]:
    """Arm -> its figure of the trained models against full precision."""
    found = [
        m
        for m in record.metrics
        if m.matches(name, {**TRAINED, **labels}) and "over" not in m.labels
    ]
    return {
        m.labels["arm"]: m
        for m in sorted(found, key=lambda m: _place(m.labels.get("arm", "")))
        if "arm" in m.labels
    }


def _place(arm: str) -> tuple[int, str]:
    return (ARMS.index(arm) if arm in ARMS else len(ARMS), arm)


def _drawable(
    across: Mapping[str, Metric], up: Mapping[str, Metric]
) -> dict[str, tuple[Metric, Metric]]:
    return {
        arm: (x, up[arm])
        for arm, x in across.items()
        if arm in up and up[arm].value is not None and x.value
    }


def _class(record: StageRecord, results: Sequence[GateResult]) -> str:
    """The class that a gate judges, else the one of the longest answers."""
    for result in results:
        if result.metric == SPEED and result.labels.get("class"):
            return result.labels["class"]
    classes = [
        m.labels["class"]
        for m in record.metrics
        if m.matches(SPEED, TRAINED) and "class" in m.labels and m.value is not None
    ]
    return max(classes, key=_length, default="")


def _length(name: str) -> int:
    tail = name.rsplit("_", 1)[-1]
    return int(tail) if tail.isdecimal() else 0


def _fits(result: GateResult, name: str, shown_class: str) -> bool:
    """Whether the gate judges what the axis ``name`` shows."""
    labels = result.labels
    return (
        result.metric == name
        and labels.get("source", "trained") == "trained"
        and "over" not in labels
        and labels.get("class", shown_class) == shown_class
    )


def _lines(
    name: str, results: Sequence[GateResult], shown_class: str, texts: Texts
) -> list[GateLine]:
    """One line a limit, with the arms it is a limit of."""
    arms: dict[tuple[str, float], list[str]] = {}
    for result in results:
        if _fits(result, name, shown_class):
            arm = result.labels.get("arm", "")
            arms.setdefault((result.side, result.limit), []).append(arm)
    return [
        GateLine(limit, _rule(side, limit, dict.fromkeys(of), texts))
        for (side, limit), of in arms.items()
    ]


def _rule(side: str, limit: float, arms: Iterable[str], texts: Texts) -> str:
    rule = texts(f"page.{side}", limit=limit)
    names = ", ".join(texts.label("arm", arm) for arm in arms if arm)
    return texts("trade.gate", rule=rule, arms=names) if names else rule


def _left_out(found: Mapping[str, Mapping[str, Metric]], texts: Texts) -> list[str]:
    """A sentence for each set of figures that arms lack, so that nobody looks for them in vain."""
    arms = {arm for by_arm in found.values() for arm in by_arm} - {BASELINE}
    without: dict[tuple[str, ...], list[str]] = {}
    for arm in sorted(arms, key=_place):
        lacks = tuple(
            name for name, by_arm in found.items() if arm not in by_arm or not _known(by_arm[arm])
        )
        if lacks:
            without.setdefault(lacks, []).append(texts.label("arm", arm))
    return [
        texts(
            "trade.left_out",
            arms=", ".join(names),
            figures=", ".join(texts(f"trade.lacks.{name}") for name in lacks),
        )
        for lacks, names in without.items()
    ]


def _hybrid(
    records: Mapping[str, StageRecord], found: Mapping[str, Mapping[str, Metric]], texts: Texts
) -> list[str]:
    """The hybrid is judged apart, on text of its own, and timed by no session with the others."""
    if "hybrid_plan" not in records or "hybrid" in found[QUALITY]:
        return []
    loss = records["hybrid_plan"].metric("hybrid_quality_loss_bits_per_byte")
    return [texts("trade.hybrid", loss=loss.value)] if loss and loss.value is not None else []


def _known(metric: Metric) -> bool:
    return metric.value is not None


def _other_gates(results: Sequence[GateResult], shown_class: str, texts: Texts) -> list[str]:
    """The gates of quality, speed and memory that judge something else than what is drawn."""
    others = dict.fromkeys(
        texts.figure(result.metric, result.labels)
        for result in results
        for name, near in NEAR.items()
        if result.metric in near and not _fits(result, name, shown_class)
    )
    return [texts("trade.no_line", figures="; ".join(others))] if others else []


def _alt(
    found: Mapping[str, Mapping[str, Metric]], lines: Mapping[str, list[GateLine]], texts: Texts
) -> str:
    """What the picture shows, an arm a sentence, and what the gates ask."""
    said = []
    for arm in dict.fromkeys(arm for by_arm in found.values() for arm in by_arm):
        own = {name: by_arm[arm] for name, by_arm in found.items() if arm in by_arm}
        parts = [
            texts(f"trade.alt.{name}", value=number(metric.value, texts.language))
            for name, metric in own.items()
            if metric.value is not None
        ]
        if parts and arm != BASELINE:
            said.append(f"{texts.label('arm', arm)}: {', '.join(parts)}")
    gates = [line.text for of in lines.values() for line in of]
    return ". ".join([texts("trade.title"), *said, *gates]) + "."
