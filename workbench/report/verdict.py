"""Go, no go or undecided, and why.

The gates decide, nothing else: **no go** when a gate is broken, **undecided** when none is
broken but one could not be measured, or holds by its value and not by its interval, or when
there are no gates at all; **go** when every gate holds. Caveats do not change the decision;
they say how far it reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.pilot.spec import Pilot
from workbench.records.stage_record import StageRecord
from workbench.report.gates import GateResult
from workbench.wording.text import Texts

Decision = Literal["go", "no go", "undecided"]


@dataclass(frozen=True)
class Sentence:
    """A text of the catalogue and what goes into it, so that any language can show it."""

    code: str
    values: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        text = Texts()(self.code, **self.values)
        return {"code": self.code, "values": self.values, "text": text}


@dataclass(frozen=True)
class Verdict:
    decision: Decision
    reasons: list[Sentence]
    caveats: list[Sentence]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``facts["verdict"]``; the texts in it are English."""
        return {
            "decision": self.decision,
            "reasons": [sentence.to_json() for sentence in self.reasons],
            "caveats": [sentence.to_json() for sentence in self.caveats],
        }


def decide(
    results: Sequence[GateResult], records: Mapping[str, StageRecord], pilot: Pilot
) -> Verdict:
    """The verdict on the results of all gates."""
    broken = [r for r in results if r.outcome == "fail" and not r.only_uncertain]
    uncertain = [r for r in results if r.only_uncertain]
    unmeasured = [r for r in results if r.outcome == "not measured"]
    held = sum(r.outcome == "pass" for r in results)
    reasons = [
        *(_about("verdict.broken", r) for r in broken),
        *(_about("verdict.uncertain", r) for r in uncertain),
        *(Sentence("verdict.unmeasured", {"figure": _figure(r)}) for r in unmeasured),
    ]
    if not results:
        return Verdict("undecided", [Sentence("verdict.no_gates")], caveats(records, pilot))
    reasons.append(Sentence("verdict.held", {"held": held, "all": len(results)}))
    decision: Decision = "no go" if broken else "undecided" if uncertain or unmeasured else "go"
    return Verdict(decision, reasons, caveats(records, pilot))


def caveats(records: Mapping[str, StageRecord], pilot: Pilot) -> list[Sentence]:
    """What a reader must know before carrying the verdict elsewhere."""
    found = []
    trained = records["train_qat"].metric("training_tokens") if "train_qat" in records else None
    if trained and trained.value:
        model = pilot.model.checkpoint or pilot.model.preset
        found.append(Sentence("caveat.trained", {"model": model, "tokens": trained.value}))
    if "train_qat" in records and "distillation" in records["train_qat"].facts:
        found.append(Sentence("caveat.taught"))
    probe = records["readiness"].metric("decode_speedup") if "readiness" in records else None
    if probe and probe.value:
        found.append(Sentence("caveat.probe", {"shape": probe.labels.get("shape", "")}))
    found += _against_int8(records)
    if "profile_load" in records and records["profile_load"].facts.get("kind") == "assumed":
        found.append(Sentence("caveat.assumed_load"))
    if "measure_ab" in records and not _has(records["measure_ab"], "energy_j_per_token"):
        found.append(Sentence("caveat.no_energy"))
    return found


def _against_int8(records: Mapping[str, StageRecord]) -> list[Sentence]:
    """What could be had without any training, so what ternary weights add to that."""
    found = []
    if "readiness" in records:
        decode, memory = (
            records["readiness"].metric(f"{name}_over_int8", source="probe")
            for name in ("decode_speedup", "memory_ratio")
        )
        if decode and memory and decode.value and memory.value:
            values = {"decode": decode.value, "memory": memory.value}
            shape = decode.labels.get("shape", "")
            surely = decode.value if decode.lo is None else decode.lo
            code = "caveat.int8_probe" if surely > 1 else "caveat.int8_probe_no_faster"
            found.append(Sentence(code, {**values, "shape": shape}))
    if "measure_ab" in records:
        gap = records["measure_ab"].metric("quality_gap_bits_per_byte", arm="int8")
        if gap and gap.value is not None:
            found.append(Sentence("caveat.int8_quality", {"gap": gap.value}))
    return found


def _has(record: StageRecord, name: str) -> bool:
    return any(m.name == name and m.value is not None for m in record.metrics)


def _figure(result: GateResult) -> dict[str, Any]:
    return {"name": result.metric, "labels": result.labels}


def _about(code: str, result: GateResult) -> Sentence:
    values = {
        "figure": _figure(result),
        "value": result.value,
        "decider": result.decider,
        "limit": result.limit,
        "unit": result.unit,
    }
    return Sentence(f"{code}.{result.side}", values)
