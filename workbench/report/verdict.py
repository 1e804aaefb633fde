"""Go, no go or inconclusive, and why.

The gates decide, nothing else: **no go** when a gate fails, by more than one of so many gates
would by chance; **inconclusive** when none does but one is inconclusive or there are no gates at
all; **go** when every gate passes. Caveats do not change the decision; they say how far it
reaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.pilot.spec import Pilot
from workbench.records.stage_record import StageRecord
from workbench.report.differences import significant
from workbench.report.gates import GateResult
from workbench.report.training_gain import training_gain
from workbench.serve.carries import Carries, carries
from workbench.wording.labels import label_text
from workbench.wording.text import Texts

Decision = Literal["go", "no go", "inconclusive"]


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
    if not results:
        reasons = [Sentence("verdict.no_gates")]
        return Verdict("inconclusive", reasons, caveats(records, pilot))
    failed = [r for r in results if r.outcome == "fail"]
    open_ = [r for r in results if r.outcome == "inconclusive"]
    surely = [r for r in failed if not r.chance]
    reasons = [
        *(_too_noisy(r) for r in open_ if r.effect),
        *(_about(_failed(r), r) for r in surely),
        *(_about("verdict.failed_by_chance", r, all=len(results)) for r in failed if r.chance),
        *(_why_open(r) for r in open_ if r.effect is None),
        Sentence("verdict.held", {"held": len(results) - len(failed + open_), "all": len(results)}),
    ]
    decision: Decision = "no go" if surely else "inconclusive" if failed or open_ else "go"
    return Verdict(decision, reasons, caveats(records, pilot))


def caveats(records: Mapping[str, StageRecord], pilot: Pilot) -> list[Sentence]:
    """What a reader must know before carrying the verdict elsewhere."""
    found = _carried(records, pilot)
    trained = records["train_qat"].metric("training_tokens") if "train_qat" in records else None
    if trained and trained.value:
        model = pilot.model.checkpoint or pilot.model.preset
        found.append(Sentence("caveat.trained", {"model": model, "tokens": trained.value}))
        found.append(_luck_of_the_seed(records["train_qat"]))
    if "train_qat" in records and (ready := records["train_qat"].facts.get("ready_ternary")):
        found.append(Sentence("caveat.ready", {"format": ready["format"]}))
    if "train_qat" in records:
        found += _partly_ternary(records["train_qat"])
    if "train_qat" in records and "distillation" in records["train_qat"].facts:
        found.append(Sentence("caveat.taught"))
    probe = records["readiness"].metric("decode_speedup") if "readiness" in records else None
    if probe and probe.value:
        found.append(Sentence("caveat.probe", {"shape": probe.labels.get("shape", "")}))
    measured = (records[stage] for stage in ("readiness", "measure_ab") if stage in records)
    if any("uneven_units" in record.facts for record in measured):
        found.append(Sentence("caveat.uneven_units"))
    found += _against_untrained(records)
    found += _what_training_buys(records, pilot)
    if "measure_ab" in records:
        found += _drafted(records["measure_ab"])
    found += _hybrid_limit(records)
    if "profile_load" in records and records["profile_load"].facts.get("kind") == "assumed":
        found.append(Sentence("caveat.assumed_load"))
    found += _noise(records)
    cut = records["deploy_rollback"].metric("cut_share") if "deploy_rollback" in records else None
    if cut and cut.value:
        found.append(Sentence("caveat.cut", {"percent": 100 * cut.value}))
    if "measure_ab" in records and not _has(records["measure_ab"], "energy_j_per_token"):
        found.append(Sentence("caveat.no_energy"))
    return found


def _partly_ternary(trained: StageRecord) -> list[Sentence]:
    """What of the body stayed precise, where it is more than its norms."""
    share, facts = trained.metric("ternary_share"), trained.facts.get("conversion", {})
    if share is None or share.value is None or not (others := facts.get("not_ternary")):
        return []
    where = ", ".join(list(others)[:3]) + (" ..." if len(others) > 3 else "")
    percent = 100 * (1 - share.value)
    return [Sentence("caveat.partly_ternary", {"percent": percent, "where": where})]


def _luck_of_the_seed(trained: StageRecord) -> Sentence:
    gaps = [m.value for m in trained.metrics if m.name == "seed_gap_bits_per_byte"]
    known = [gap for gap in gaps if gap is not None]
    if len(known) < 2:
        return Sentence("caveat.one_seed")
    return Sentence("caveat.seeds", {"n": len(known), "least": min(known), "most": max(known)})


def _carried(records: Mapping[str, StageRecord], pilot: Pilot) -> list[Sentence]:
    """For each arm: carries your load, yes, no or not measured, at what rate. Of an arm that was
    replayed in both stages, what was measured."""
    answers: dict[str, Any] = {}
    if "measure_ab" in records:
        answers = {arm: of.to_json() for arm, of in _in_blocks(records["measure_ab"], pilot)}
    if "deploy_rollback" in records:
        for arm, found in records["deploy_rollback"].facts.get("carries", {}).items():
            known = answers.get(arm, {"answer": "not_measured"})["answer"] != "not_measured"
            if found["answer"] != "not_measured" or not known:
                answers[arm] = found
    return [
        Sentence(f"carries.{found['answer']}.{found['why']}", {"arm": arm, "share": found["share"]})
        for arm, found in answers.items()
    ]


def _in_blocks(record: StageRecord, pilot: Pilot) -> Iterator[tuple[str, Carries]]:
    """What the blocks of the load say of each arm, addresses too; nothing without a replay."""
    under_load = {"source": "load"}
    pace, cut, delay = (
        record.metric(name, **under_load, **more)
        for name, more in (
            ("replay_speedup", {}), ("cut_share", {}), ("dispatch_delay_ms", {"quantile": "p99"}),
        )
    )  # fmt: skip
    if pace is None or pace.value is None:
        return
    most_ms = pilot.measure_ab.load.max_dispatch_delay_ms
    late = delay is not None and delay.value is not None and delay.value > most_ms
    for arm in pilot.measure_ab.all_arms:
        met = {
            m.labels["class"]: m
            for m in record.metrics
            if m.matches("slo_met_share", {"arm": arm, **under_load}) and m.value is not None
        }
        cut_share = cut.value if cut and cut.value else 0.0
        asked = {"cut_share": cut_share, "wanted_share": pilot.deploy_rollback.slo_share}
        yield arm, carries(pace.value, 1.0, None, met, **asked, late=late)


def _noise(records: Mapping[str, StageRecord]) -> list[Sentence]:
    """How much of what was timed was disturbed by what else the machine did."""
    found = []
    for stage, fact, of in (
        ("readiness", "noise", "readiness"),
        ("measure_ab", "noise", "measure_ab"),
        ("measure_ab", "load_noise", "under_load"),
        ("deploy_rollback", "noise", "deploy_rollback"),
    ):
        noise = records[stage].facts.get(fact) if stage in records else None
        if noise and noise["disturbed"]:
            shares = (noise[f"{who}_share"] or 0.0 for who in ("others", "steal", "pressure"))
            others, steal, pressure = (round(100 * share) for share in shares)
            values = {"disturbed": noise["disturbed"], "blocks": noise["blocks"]}
            values |= {"others": others, "steal": steal, "pressure": pressure}
            found.append(Sentence(f"caveat.busy_{of}", values))
    return found


def _against_untrained(records: Mapping[str, StageRecord]) -> list[Sentence]:
    """What could be had without any training, so what ternary weights add to that: of the probe
    the smaller of INT4 and INT8, since nothing is known of quality there."""
    found: list[Sentence] = []
    for kind in ("int4", "int8"):
        if not found and "readiness" in records:
            found += _against_probed(kind, records)
    for kind in ("int8", "int4"):
        if "measure_ab" in records:
            gap = records["measure_ab"].metric("quality_gap_bits_per_byte", arm=kind)
            if gap and gap.value is not None:
                values = {"kind": kind.upper(), "gap": gap.value}
                found.append(Sentence("caveat.rounded_quality", values))
    return found


def _drafted(measured: StageRecord) -> list[Sentence]:
    """What full precision's own answers, drafted by ternary, cost and bring: at the longest of the
    fixed answers."""
    speedups = [
        m for m in measured.metrics
        if m.matches("speedup", {"arm": "speculative"}) and m.value is not None
    ]  # fmt: skip
    ratio, right = (
        measured.metric(name, arm="speculative") for name in ("memory_ratio", "draft_acceptance")
    )
    if not speedups or ratio is None or not ratio.value:
        return []
    longest = max(speedups, key=lambda m: int(m.labels["class"].rpartition("_")[2]))
    accepted = (right.value if right else None) or 0.0
    values = {
        "times": longest.value, "memory": 1 / ratio.value, "percent": round(100 * accepted),
    }  # fmt: skip
    exact = measured.facts.get("drafted_to_the_bit")
    found = [Sentence("caveat.speculative" if exact else "caveat.speculative_rounded", values)]
    model, lookup = (
        measured.metric("draft_share", arm="speculative", draft=draft)
        for draft in ("model", "prompt_lookup")
    )
    if model and model.value is not None and lookup and lookup.value is not None:
        shares = {"model": round(100 * model.value), "lookup": round(100 * lookup.value)}
        found.append(Sentence("caveat.speculative_drafts", shares))
    return found


def _hybrid_limit(records: Mapping[str, StageRecord]) -> list[Sentence]:
    """The hybrid's own limit of quality on fresh text, where it is not shown to be held."""
    planned = records.get("hybrid_plan")
    limit = planned.facts.get("limit") if planned else None
    loss = planned.metric("hybrid_quality_loss_bits_per_byte") if planned else None
    if not limit or limit["outcome"] == "held" or loss is None or loss.value is None:
        return []
    values = {"loss": loss.value, "limit": limit["max_quality_loss"]}
    return [Sentence(f"caveat.hybrid_{limit['outcome']}", values)]


def _against_probed(kind: str, records: Mapping[str, StageRecord]) -> list[Sentence]:
    decode, memory = (
        records["readiness"].metric(f"{name}_over_{kind}", source="probe")
        for name in ("decode_speedup", "memory_ratio")
    )
    if not (decode and memory and decode.value and memory.value):
        return []
    values = {"kind": kind.upper(), "decode": decode.value, "memory": memory.value}
    at = ("readiness", decode.name, label_text(decode.labels))
    alone = decode.lo is not None and decode.lo > 1
    faster = alone and significant(records).get(at, True)
    ready = "train_qat" in records and "ready_ternary" in records["train_qat"].facts
    seen = "" if faster else "_unsure" if decode.lo is None else "_no_faster"
    code = f"caveat.rounded_probe{seen}" + ("_ready" if ready else "")
    return [Sentence(code, {**values, "shape": decode.labels.get("shape", "")})]


def _what_training_buys(records: Mapping[str, StageRecord], pilot: Pilot) -> list[Sentence]:
    gain = training_gain(records, pilot.report.gates)
    if gain is None:
        return []
    if gain.smallest is None or gain.memory.value is None:
        open_still = gain.undecided
        return [Sentence(f"caveat.{'untrained_undecided' if open_still else 'no_untrained_keeps'}")]
    values: dict[str, Any] = {"arm": gain.smallest, "memory": gain.memory.value}
    if not gain.kept:
        return [Sentence("caveat.training_buys_nothing_yet", values)]
    if gain.latency.lo is None or gain.latency.lo <= 1:
        return [Sentence("caveat.training_buys", values)]
    values |= {"times": gain.latency.value, "fastest": gain.quickest}
    return [Sentence("caveat.training_buys_faster", values)]


def _has(record: StageRecord, name: str) -> bool:
    return any(m.name == name and m.value is not None for m in record.metrics)


def _figure(result: GateResult) -> dict[str, Any]:
    return {"name": result.metric, "labels": result.labels}


def _failed(result: GateResult) -> str:
    """An exact figure, or a count, has no interval to speak of."""
    bound = result.lo if result.side == "at_most" else result.hi
    return "verdict.failed_exact" if bound is None or bound == result.value else "verdict.failed"


def _too_noisy(result: GateResult) -> Sentence:
    under_load = "_under_load" if result.labels.get("source") == "load" else ""
    return _about(f"verdict.too_noisy{under_load}", result, effect=100 * (result.effect or 0.0))


def _why_open(result: GateResult) -> Sentence:
    if result.value is None:
        return Sentence("verdict.unmeasured", {"figure": _figure(result)})
    if result.decider is None:
        why = {"reason": result.reason, "reason_code": result.reason_code}
        return _about("verdict.no_interval", result, **why)
    return _about("verdict.crosses", result)


def _about(code: str, result: GateResult, **more: Any) -> Sentence:
    values = {
        "figure": _figure(result),
        "value": result.value,
        "lo": "\N{MINUS SIGN}∞" if result.lo is None else result.lo,
        "hi": "∞" if result.hi is None else result.hi,
        "limit": result.limit,
        "unit": result.unit,
    }
    return Sentence(f"{code}.{result.side}", values | more)
