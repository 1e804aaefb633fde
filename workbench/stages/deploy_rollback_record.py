"""What stage ``deploy_rollback`` records of a replay: tables, notes and figures of each arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import StageError
from workbench.load.likeness import likeness
from workbench.load.piece import Piece, PlannedRequest
from workbench.load.profile import LoadProfile
from workbench.measure.dependence import quantile_over_time, rate_over_time, share_over_time
from workbench.measure.request_latency import said_targets, slo_met
from workbench.measure.statistics import Estimate, count
from workbench.records.stage_record import StageRecord
from workbench.serve.carries import ONE_BURST, Capacity, carries
from workbench.serve.process import ServerProcess
from workbench.serve.rehearsal import (
    CANDIDATE,
    FALLBACK,
    Handover,
    phase_latencies,
    requests_table,
    served_by,
)
from workbench.serve.replay import FAULTS, Outcome
from workbench.serve.tuning import Searched
from workbench.stages.context import StageContext
from workbench.stages.deploy_rollback_tuning import with_tuning
from workbench.wording.counts import number_of

MB = 1e6
ONE_ROLLBACK = (
    "no interval: one rollback; how long others would take does not show in it. The phases' "
    "latencies and lost_requests say what it cost"
)
SHORTEST_WINDOW_S, MOST_WINDOWS = 0.05, 400
"""Windows in which requests that met their targets are counted, for the interval of goodput."""
Shares = dict[str, dict[str, Estimate]]
"""Arm -> class -> share of its requests that met their targets."""


@dataclass
class Replayed:
    """What the rehearsal gave. capacity: by arm. speedup: pace of the replay, 1 is the load's.
    peak_bytes, grown_bytes: memory of the server, the most and the growth over the replay.
    energies: rows of the replay's windows (:mod:`.deploy_rollback_energy`)."""

    outcomes: list[Outcome]
    switches: list[dict]
    capacity: dict[str, Capacity]
    speedup: float
    piece: Piece
    schedule: list[PlannedRequest]
    peak_bytes: int
    grown_bytes: int
    gpu_bytes: int | None
    energies: list[dict[str, Any]]


def record_server(context: StageContext, server: ServerProcess, replayed: Replayed) -> None:
    record, arms = context.record, server.ready.arms
    parts = ", ".join(f"{name} {arm.resident_bytes / MB:.0f}" for name, arm in arms.items())
    record.measured(
        "memory_both_arms_mb",
        replayed.peak_bytes / MB,
        "MB",
        "most that the server's processes held together during the replay, runtime included (pages "
        "that they share count once); each arm has a process of its own, and no weights are "
        f"shared; growth by loading and warming, MB: {parts}",
        basis="exact",
    )
    if replayed.gpu_bytes is not None:
        record.measured(
            "gpu_memory_both_arms_mb",
            replayed.gpu_bytes / MB,
            "MB",
            "the most that torch held on the server's GPU until the end of the replay",
            basis="exact",
        )
    for name, arm in arms.items():
        record.measured(
            "capacity_per_s",
            replayed.capacity[name].per_s,
            "requests/s",
            "requests sent at once over the time until the last had ended, when the slots were no "
            f"longer all busy; full, at most {replayed.capacity[name].at_most_per_s:.4g}",
            reason=ONE_BURST,
            arm=name,
        )
        for note in arm.notes:
            context.note(f"{name}: {note}")
    record.facts["backends"] = {name: arm.backend for name, arm in arms.items()}


def record_replay(
    context: StageContext, replayed: Replayed, tuned: Sequence[Searched] = ()
) -> None:
    section, record = context.pilot.deploy_rollback, context.record
    requests = requests_table(replayed.outcomes)
    record.save_table("requests", requests)
    columns = ["time_s", "from_arm", "to_arm", "reason"]
    record.save_table("switches", pd.DataFrame(replayed.switches, columns=columns))
    record.add(
        Estimate(replayed.speedup, None, None, 1, "", basis="exact").metric(
            "replay_speedup",
            "",
            "pace of the replay, 1 is the load's own rate; as the pilot says"
            if section.speedup
            else "pace of the replay, 1 is the load's own rate: "
            f"{section.target_utilisation:g} of the smaller capacity over the profile's rate",
            "assumed" if section.speedup else "derived",
        )
    )
    _record_piece(context, replayed)
    record.save_table("likeness", _likeness(context, replayed, requests))
    _record_losses(context, requests)
    late = _record_dispatch(context, requests)
    handover = _record_rollback(context, requests, replayed.switches, late)
    _record_faults(record, requests, handover.ordered_s)
    shares = _record_targets(context, requests, handover.ordered_s, late)
    _record_carried(context, replayed, shares, late, tuned)


def _record_piece(context: StageContext, replayed: Replayed) -> None:
    """Which piece of the load was replayed, and what of its burstiness that kept."""
    record, fidelity = context.record, replayed.piece.fidelity
    record.facts["piece"] = replayed.piece.to_json()
    for lost in fidelity.lost:
        context.note(lost)
    how = (
        f"the {replayed.piece.kind} piece of {replayed.piece.length_s:.4g} s of the load, at the "
        "load's own pace"
    )
    if fidelity.piece_gap_cv is None:
        record.missing("replayed_gap_cv", "", "the replayed piece has too few requests")
    else:
        record.measured("replayed_gap_cv", fidelity.piece_gap_cv, "", how, basis="exact")
    record.measured(
        "replayed_window_p95",
        fidelity.piece_p95,
        "requests",
        f"{how}: 95th percentile of the requests in windows of {fidelity.window_s:.3g} s; "
        f"{fidelity.p95:.4g} in the whole load",
        basis="exact",
    )
    if cut := sum(planned.cut for planned in replayed.schedule):
        context.note(
            f"cut to what the models hold: {cut} of "
            f"{number_of(len(replayed.schedule), 'replayed request')}"
        )


def _likeness(context: StageContext, replayed: Replayed, requests: pd.DataFrame) -> pd.DataFrame:
    """The load, requests drawn from its profile, and the replay as it was sent, at its own pace."""
    profile = LoadProfile.from_record(context.need("profile_load"))
    sent_s = np.sort(requests["sent_s"].to_numpy() * replayed.speedup)
    sent = replace(replayed.piece, requests=pd.DataFrame({"start_s": sent_s}))
    window_s, seed = context.pilot.profile_load.window_s, context.pilot.seed
    return likeness(profile, sent, window_s, seed).replace({"load": {"piece": "replayed"}})


def _record_losses(context: StageContext, requests: pd.DataFrame) -> None:
    record, n = context.record, len(requests)
    counts = requests["status"].value_counts()
    failed, rejected, truncated = (
        int(counts.get(status, 0)) for status in ("failed", "rejected", "truncated")
    )
    how = f"without any token: {failed} failed, {rejected} rejected because the queue was full"
    record.add(count(failed + rejected, n).metric("lost_requests", "requests", how))
    how = "answers that broke off"
    record.add(count(truncated, n).metric("truncated_requests", "requests", how))


def _record_faults(record: StageRecord, requests: pd.DataFrame, ordered_s: float) -> None:
    """Requests that were not answered in full, by kind of fault, of each arm."""
    arms = served_by(requests, ordered_s)
    for arm in (FALLBACK, CANDIDATE):
        own = requests[arms == arm]
        for fault in FAULTS:
            labels = {"arm": arm, "fault": fault}
            if own.empty:
                why = "no request came to the arm"
                record.missing("failed_requests", "requests", why, **labels)
            else:
                found = count(int((own["fault"] == fault).sum()), len(own))
                record.add(found.metric("failed_requests", "requests", "", **labels))


def _record_dispatch(context: StageContext, requests: pd.DataFrame) -> str | None:
    """How late the client sent; why nothing may be read from its latencies, None if it may."""
    section = context.pilot.deploy_rollback
    delay_ms = 1e3 * (requests["sent_s"] - requests["intended_s"]).to_numpy()
    for q in (0.5, 0.99):
        context.record.add(
            quantile_over_time(delay_ms, q).metric(
                "dispatch_delay_ms",
                "ms",
                "sent minus intended, of the client itself",
                quantile=f"p{100 * q:g}",
            )
        )
    late_ms = float(np.quantile(delay_ms, 0.99))
    if late_ms <= section.max_dispatch_delay_ms:
        return None
    why = (
        f"refused: the client itself sent {late_ms:.3g} ms late (p99), allowed are "
        f"{section.max_dispatch_delay_ms:g} (deploy_rollback.max_dispatch_delay_ms); end what else "
        "runs on this machine, or lower deploy_rollback.speedup, and replay again"
    )
    context.note(why)
    return why


def _record_rollback(
    context: StageContext, requests: pd.DataFrame, switches: list[dict], late: str | None = None
) -> Handover:
    record = context.record
    back = next((s for s in switches if s["to_arm"] == FALLBACK), None)
    if back is None:
        raise StageError(
            "the server did not take the rollback's order",
            next_step="read server.log in the stage's folder",
        )
    handover = Handover.of(requests, back["time_s"], back["from_arm"], FALLBACK)
    if handover.first_token_s is None:
        reason = "no request came to the fallback after the order; raise duration_s"
        record.missing("rollback_first_token_s", "s", reason)
    else:
        waited_s = max(0.0, handover.first_due_s - handover.ordered_s)
        record.measured(
            "rollback_first_token_s",
            handover.first_token_s - handover.ordered_s,
            "s",
            "from the switch to the first token of the fallback that a client received; "
            f"its request was due {waited_s:.3f} s after the switch",
            n=1,
            reason=ONE_ROLLBACK,
        )
    phases = handover.phases(requests)
    answered = int((requests["status"] == "ok").sum())
    how = (
        f"{answered} of {number_of(len(requests), 'request')}, those answered in full, from the "
        "intended start; the switch lasted until the old arm had drained, {:.2f} s"
    )
    for name, estimate, labels in phase_latencies(requests, phases):
        text = how.format(handover.drained_s - handover.ordered_s)
        if late:
            record.missing(name, "ms", late, **labels)
            continue
        record.add(estimate.metric(name, "ms", text, **labels))
    return handover


def _record_targets(
    context: StageContext, requests: pd.DataFrame, ordered_s: float, late: str | None = None
) -> Shares:
    """Goodput and shares of requests that met their targets, of each arm over its own time.

    late: why nothing may be read from the latencies; no figure then has a value.
    """
    section, slos = context.pilot.deploy_rollback, context.need("profile_load").facts["slo"]
    met, arms = slo_met(requests, slos), served_by(requests, ordered_s)
    lasted_s = max(section.duration_s, float(requests["end_s"].max()))
    served_s = {CANDIDATE: (0.0, ordered_s), FALLBACK: (ordered_s, lasted_s)}
    shares: Shares = {}
    for arm, (from_s, to_s) in served_s.items():
        own = requests[arms == arm]
        shares[arm] = {}
        if late:
            context.record.missing("goodput_per_s", "requests/s", late, arm=arm)
        else:
            _record_goodput(context, own, met[own.index], arm, from_s, to_s)
        for class_ in sorted(set(requests["class"]) | set(slos)):
            labels = {"arm": arm, "class": class_}
            of = own[own["class"] == class_]
            judged = of[met[of.index].notna()]
            if late or judged.empty:
                why = late or (
                    "no request of this class came to the arm"
                    if of.empty
                    else "the class has no target"
                )
                context.record.missing("slo_met_share", "", why, **labels)
                continue
            waited_s = (judged["end_s"] - judged["intended_s"]).fillna(lasted_s)
            estimate = share_over_time(met[judged.index].to_numpy(bool), waited_s)
            how = f"targets: {said_targets(slos.get(class_, {}))}"
            context.record.add(estimate.metric("slo_met_share", "", how, **labels))
            shares[arm][class_] = estimate
    return shares


def _record_goodput(
    context: StageContext,
    requests: pd.DataFrame,
    met: pd.Series,
    arm: str,
    from_s: float,
    to_s: float,
) -> None:
    """requests, met: of the arm, which had the load from ``from_s`` to ``to_s``."""
    if not met.notna().any():
        why = "no request with a target came to the arm"
        context.record.missing("goodput_per_s", "requests/s", why, arm=arm)
        return
    good = met.map(lambda value: value is True).to_numpy(bool)
    lasted_s = to_s - from_s
    windows = max(1, min(MOST_WINDOWS, int(lasted_s / SHORTEST_WINDOW_S)))
    due_s = requests["intended_s"][good].clip(from_s, to_s)
    counts, _ = np.histogram(due_s, windows, (from_s, to_s))
    how = (
        f"requests that met every target of their class, over the {lasted_s:.1f} s in which the "
        f"arm had the load ({number_of(len(requests), 'request')}); lost and truncated ones are "
        "misses"
    )
    goodput = rate_over_time(counts, lasted_s / windows)
    context.record.add(goodput.metric("goodput_per_s", "requests/s", how, arm=arm))


def _record_carried(
    context: StageContext,
    replayed: Replayed,
    shares: Shares,
    late: str | None,
    tuned: Sequence[Searched],
) -> None:
    """For each arm, whether it carries the load, as far as this replay and the tuning can say."""
    record = context.record
    profile = LoadProfile.from_record(context.need("profile_load"))
    cut = record.metric("cut_share")
    wanted_share = context.pilot.deploy_rollback.slo_share
    cut_share = cut.value if cut and cut.value else 0.0
    answers = {}
    for arm, capacity in replayed.capacity.items():
        answers[arm] = carries(
            replayed.speedup,
            profile.rate_per_s,
            capacity,
            shares[arm],
            cut_share=cut_share,
            wanted_share=wanted_share,
            late=late is not None,
        )
        record.add(
            Estimate(
                capacity.per_s / profile.rate_per_s,
                None,
                None,
                1,
                "",
                reason=ONE_BURST,
            ).metric(
                "capacity_over_rate",
                "",
                f"capacity_per_s over the load's mean rate of {profile.rate_per_s:.4g} a second; "
                "full to its last slot the arm completes at most "
                f"{capacity.at_most_per_s / profile.rate_per_s:.3g} of it",
                "derived",
                arm=arm,
            )
        )
    together = with_tuning(
        answers, tuned, profile.rate_per_s, cut_share=cut_share, wanted_share=wanted_share
    )
    record.facts["carries"] = {arm: answer.to_json() for arm, answer in together.items()}
