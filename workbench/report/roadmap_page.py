"""The roadmap's page: who does what, a checklist that ticks itself, and the register of risks.

All of it is read from the records of a run and from its pilot. A check is ticked, missed or still
ahead; a risk is held, open or not looked at yet, with what machine and pilot show of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from workbench.pilot.spec import Pilot
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.report.gates import evaluate
from workbench.report.plotly_page import templates
from workbench.roadmap import STAGES
from workbench.wording.text import Texts

Tick = Literal["done", "missed", "ahead"]
Level = Literal["held", "open", "ahead"]
TICKS: dict[Tick, str] = {"done": "☑", "missed": "☒", "ahead": "☐"}
ROLES: dict[str, tuple[str, ...]] = {
    "training": ("train_qat", "hybrid_plan"),
    "devops": ("readiness", "measure_ab", "deploy_rollback"),
    "operations": ("profile_load", "report"),
}
"""Who answers for which stages; the others help."""
DECIDED = ("go", "no go")

Check = Callable[[StageRecord, Pilot], bool]


@dataclass(frozen=True)
class Ticked:
    """One line of a checklist, in words."""

    tick: Tick
    tick_name: str
    text: str

    @property
    def mark(self) -> str:
        return TICKS[self.tick]


@dataclass(frozen=True)
class StageList:
    """One stage of the roadmap: who answers for it, and what is done."""

    title: str
    decides: str
    role: str
    checks: list[Ticked]


@dataclass(frozen=True)
class Risk:
    """One line of the register. shown: what machine and pilot say about it; do: the next step."""

    level: Level
    level_name: str
    title: str
    shown: str
    do: str


@dataclass(frozen=True)
class RoadmapPage:
    """roles: name -> what it does."""

    roles: list[tuple[str, str]]
    stages: list[StageList]
    risks: list[Risk]


def roadmap_page(run: Run, texts: Texts) -> RoadmapPage:
    """Of a run as far as it has come, in the language of ``texts``."""
    records, pilot = run.records(), run.resolved().pilot
    return RoadmapPage(
        roles=[(texts(f"role.{name}"), texts(f"role.{name}.does")) for name in ROLES],
        stages=[_stage(name, records.get(name), pilot, texts) for name in STAGES],
        risks=[
            Risk(
                level,
                texts(f"risk.{level}"),
                texts(f"risk.{name}"),
                shown,
                _advice(name, records, texts),
            )
            for name, (level, shown) in _risks(records, pilot, texts).items()
        ],
    )


def roadmap_html(page: RoadmapPage, texts: Texts, *, alone: bool = True) -> Markup:
    """The page as HTML; ``alone`` brings its styles along, for a notebook."""
    return Markup(templates().get_template("roadmap.html").render(road=page, t=texts, alone=alone))


def roadmap_lines(page: RoadmapPage, texts: Texts) -> list[str]:
    """The page as plain lines."""
    lines = [f"{name}: {does}" for name, does in page.roles]
    for stage in page.stages:
        lines += ["", f"{stage.title} ({stage.role}): {stage.decides}"]
        lines += [f"  {check.mark} {check.text}" for check in stage.checks]
    lines += ["", f"{texts('risk.title')}:"]
    lines += [f"  {risk.title} ({risk.level_name}): {risk.shown} {risk.do}" for risk in page.risks]
    return lines


def _stage(name: str, record: StageRecord | None, pilot: Pilot, texts: Texts) -> StageList:
    checks = []
    for key, holds in CHECKS[name].items():
        tick: Tick = "ahead" if record is None else "done" if holds(record, pilot) else "missed"
        checks.append(Ticked(tick, texts(f"tick.{tick}"), texts(f"check.{name}.{key}")))
    role = next(role for role, stages in ROLES.items() if name in stages)
    return StageList(
        texts(f"stage.{name}"), texts(f"decides.{name}"), texts(f"role.{role}"), checks
    )


def _has(name: str, *, interval: bool = False, **labels: str) -> Check:
    """Whether a figure has a value, and an interval where it needs one."""

    def holds(record: StageRecord, pilot: Pilot) -> bool:
        found = [
            metric
            for metric in record.metrics
            if metric.name == name
            and metric.value is not None
            and labels.items() <= metric.labels.items()
        ]
        return any(m.lo is not None or m.hi is not None for m in found) if interval else bool(found)

    return holds


def _nothing_lost(record: StageRecord, pilot: Pilot) -> bool:
    found = [record.metric(name) for name in ("lost_requests", "truncated_requests")]
    return all(metric is not None and metric.value == 0 for metric in found)


def _drilled(record: StageRecord, pilot: Pilot) -> bool:
    if "drill" not in record.tables:
        return False
    rows = record.table("drill")
    return bool(len(rows)) and bool(rows["holds"].fillna(False).astype(bool).all())


def _own_text(pilot: Pilot) -> bool:
    return any(part.corpus != "python" for part in pilot.data.parts)


def _quiet(record: StageRecord, pilot: Pilot) -> bool:
    noise = record.facts.get("noise") or {}
    return bool(noise.get("blocks")) and not noise.get("disturbed")


CHECKS: dict[str, dict[str, Check]] = {
    "readiness": {
        "machine": lambda record, pilot: "machine" in record.facts,
        "probe": _has("decode_speedup", interval=True, source="probe"),
        "meters": lambda record, pilot: bool(record.facts.get("meters", {}).get("found")),
        "quiet": _quiet,
    },
    "profile_load": {
        "trace": lambda record, pilot: record.facts.get("kind") == "measured",
        "targets": lambda record, pilot: bool(
            pilot.profile_load.interactive_slo.model_dump(exclude_none=True)
        ),
    },
    "train_qat": {
        "both": lambda record, pilot: all(
            _has("final_bits_per_byte", arm=arm)(record, pilot)
            for arm in ("full_precision", "ternary")
        ),
        "own_text": lambda record, pilot: _own_text(pilot),
        "kept": lambda record, pilot: "ternary_master" in record.artefacts,
    },
    "measure_ab": {
        "quality": _has("quality_gap_bits_per_byte", interval=True, arm="ternary"),
        "speed": _has("speedup", interval=True, arm="ternary"),
        "load": _has("goodput_per_s", source="load"),
        "energy": _has("energy_j_per_token"),
        "quiet": _quiet,
    },
    "hybrid_plan": {
        "plan": lambda record, pilot: "hybrid" in record.artefacts,
        "loss": _has("hybrid_quality_loss_bits_per_byte"),
    },
    "deploy_rollback": {
        "nothing_lost": _nothing_lost,
        "back": _has("rollback_first_token_s"),
        "ways": _drilled,
    },
    "report": {
        "gates": lambda record, pilot: bool(pilot.report.gates),
        "decided": lambda record, pilot: record.facts["verdict"]["decision"] in DECIDED,
        "own_tariff": lambda record, pilot: not pilot.report.cost.is_sample,
    },
}
"""Stage -> what must be so -> whether its record, or the pilot, shows it."""


def _risks(
    records: Mapping[str, StageRecord], pilot: Pilot, texts: Texts
) -> dict[str, tuple[Level, str]]:
    """Name -> how it stands, and what is known of it here."""
    facts = records["readiness"].facts if "readiness" in records else {}
    return {
        "spares": _spares(facts, texts),
        "migration": _migration(records, facts, texts),
        "software": _software(records, facts, texts),
        "data": _data(records, pilot, texts),
        "quality": _quality(records, pilot, texts),
    }


def _spares(facts: Mapping, texts: Texts) -> tuple[Level, str]:
    machine = facts.get("machine")
    if not machine:
        return "ahead", texts("risk.unknown")
    boards = [gpu["name"] for gpu in machine["gpus"]]
    what = ", ".join([machine["cpu"]["model"], *boards])
    return "open", texts("risk.spares.shown", what=what)


def _migration(
    records: Mapping[str, StageRecord], facts: Mapping, texts: Texts
) -> tuple[Level, str]:
    kernels = facts.get("kernels")
    if not kernels:
        return "ahead", texts("risk.unknown")
    held = "hybrid_plan" in records and "hybrid" in records["hybrid_plan"].artefacts
    where = facts.get("device", "cpu").upper()
    return ("held" if held else "open"), texts(
        "risk.migration.held" if held else "risk.migration.open", where=where
    )


def _software(
    records: Mapping[str, StageRecord], facts: Mapping, texts: Texts
) -> tuple[Level, str]:
    kernels = facts.get("kernels")
    if not kernels:
        return "ahead", texts("risk.unknown")
    packages = records["readiness"].software.get("packages", {})
    named = ", ".join(f"{n} {packages[n]}" for n in ("torch", "transformers") if n in packages)
    said = texts("risk.software.shown", kernels=f"{kernels['name']} {kernels['isa']}".strip(),
                 packages=named or texts("page.unknown"))  # fmt: skip
    return ("held" if kernels["name"] in ("native", "triton") else "open"), said


def _data(records: Mapping[str, StageRecord], pilot: Pilot, texts: Texts) -> tuple[Level, str]:
    load = records.get("profile_load")
    measured = load is not None and load.facts.get("kind") == "measured"
    own = _own_text(pilot)
    text = texts("risk.data.own_text" if own else "risk.data.python")
    trace = texts("risk.data.trace" if pilot.profile_load.trace else "risk.data.declared")
    if own and load is None:
        return "ahead", f"{text} {trace}"
    return ("held" if own and measured else "open"), f"{text} {trace}"


def _advice(name: str, records: Mapping[str, StageRecord], texts: Texts) -> str:
    """Longer training settles nothing where the quality gap has no interval."""
    measured = records.get("measure_ab")
    gap = measured.metric("quality_gap_bits_per_byte", arm="ternary") if measured else None
    unsettled = name == "quality" and gap is not None and gap.value is not None and gap.hi is None
    return texts("risk.quality.judge" if unsettled else f"risk.{name}.do")


def _quality(records: Mapping[str, StageRecord], pilot: Pilot, texts: Texts) -> tuple[Level, str]:
    measured = records.get("measure_ab")
    gap = measured.metric("quality_gap_bits_per_byte", arm="ternary") if measured else None
    if gap is None or gap.value is None:
        return "ahead", texts("risk.unknown")
    gates = [g for g in pilot.report.gates if g.metric == gap.name]
    results = evaluate(gates, {k: v for k, v in records.items() if k != "report"})
    held = bool(results) and all(result.outcome == "pass" for result in results)
    said = texts("risk.quality.shown", value=gap.value, unit=texts.unit(gap.unit))
    state = "held" if held else "open" if results else "no_gate"
    return ("held" if held else "open"), f"{said} {texts(f'risk.quality.{state}')}"
