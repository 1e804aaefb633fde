"""Stage 5: the hybrid served beside full precision, the load replayed, and the way back taken.

The server is a process of its own. This one plays the clients and keeps time, so it must not
wait for the interpreter lock of the engines it measures; and a server that dies costs an error
message, not the stage. There is nothing to resume: a killed replay is played again, whole.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial

import httpx
import numpy as np
import pandas as pd
from anyio.from_thread import start_blocking_portal

from workbench.data.tokenizer import encode, load_tokenizer
from workbench.errors import StageError
from workbench.load.piece import LengthLimits, Piece, PlannedRequest
from workbench.load.profile import MOST_ORDERED, LoadProfile
from workbench.measure.dependence import rate_over_time, share_over_time
from workbench.measure.statistics import Estimate, count
from workbench.pilot.sections.deploy_rollback import DeployRollback
from workbench.serve.process import ServerProcess, server_process
from workbench.serve.rehearsal import Handover, phase_latencies, requests_table, slo_met
from workbench.serve.replay import LoadClient, Outcome, load_client
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.spec import ServeSpec
from workbench.stages.context import StageContext

FALLBACK, CANDIDATE = "full_precision", "hybrid"
MB = 1e6
TEXT_CHARACTERS = 2_000_000
"""Held-out text that prompts are cut from."""
CAPACITY_SHARE, CAPACITY_LEAST_S, CAPACITY_MOST_S = 0.05, 0.5, 10.0
"""Time for each arm's measurement of capacity, as a share of the replay, and its limits."""
SHORTEST_WINDOW_S, MOST_WINDOWS = 0.1, 400
"""Windows in which requests that met their targets are counted, for the interval of goodput."""
ORDER_LEAD_S = 0.02
"""Ahead of the request that it is meant for; two connections of one client keep no order."""


@dataclass(frozen=True)
class Load:
    """What is replayed. limits: what the models and the pilot allow."""

    profile: LoadProfile
    limits: LengthLimits
    pool: list[int]
    seed: int

    def prompt(self, planned: PlannedRequest) -> list[int]:
        """Real text of the wanted length; every request has its own."""
        length = planned.prompt_tokens
        start = int(np.random.default_rng((self.seed, planned.id)).integers(len(self.pool)))
        pieces = self.pool[start:] + self.pool * (1 + length // len(self.pool))
        return pieces[:length]

    def sample(self, count: int) -> list[PlannedRequest]:
        """Requests of the profile drawn at random, all due at once."""
        some = self.profile.sample(max(count, 1000), self.seed)
        drawn = some.sample(count, replace=True, random_state=self.seed)
        lengths = self.limits.cut(drawn["prompt_tokens"], drawn["output_tokens"])
        rows = enumerate(zip(*lengths, drawn["class"], strict=True))
        return [PlannedRequest(i, 0.0, int(p), int(o), name, False) for i, (p, o, name) in rows]


@dataclass
class Replayed:
    """What the rehearsal gave. capacity_per_s: arm -> requests a second."""

    outcomes: list[Outcome]
    switches: list[dict]
    capacity_per_s: dict[str, float]
    speedup: float
    piece: Piece
    schedule: list[PlannedRequest]
    peak_bytes: int
    gpu_bytes: int | None


def run(context: StageContext) -> None:
    """Fill the tables ``requests`` and ``switches`` and the figures of the rollback."""
    section = context.pilot.deploy_rollback
    trained, planned = context.need("train_qat"), context.need("hybrid_plan")
    readiness = context.pilot.readiness
    rule = section.rollback_rule
    spec = ServeSpec(
        arms={FALLBACK: trained.artefact(FALLBACK), CANDIDATE: planned.artefact(CANDIDATE)},
        fallback=FALLBACK,
        route=CANDIDATE,
        host=section.host,
        port=section.port,
        slots=section.slots,
        queue=section.queue,
        context=_wanted_context(section, LoadProfile.from_record(context.need("profile_load"))),
        threads=readiness.threads,
        device=context.device.name,
        hold_s=section.hold_s,
        rule=RollbackRule(**rule.model_dump()) if rule else None,
    )
    context.progress.note("starting the server with both arms")
    with server_process(spec, context.folder) as server:
        load = _load(context, server)
        # A thread of its own, because a notebook's kernel has an event loop running already.
        with start_blocking_portal() as portal:
            replayed = portal.call(partial(_rehearse, context, server, load))
    _record_server(context, server, replayed)
    _record_replay(context, replayed)


def _load(context: StageContext, server: ServerProcess) -> Load:
    section = context.pilot.deploy_rollback
    trained = context.need("train_qat")
    tokenizer = load_tokenizer(str(trained.artefact("tokenizer")))
    texts, size = [], 0
    for text in trained.table("heldout")["text"]:
        texts.append(text[: TEXT_CHARACTERS - size])
        if (size := size + len(texts[-1])) >= TEXT_CHARACTERS:
            break
    pool = [token for ids in encode(tokenizer, texts) for token in ids]
    profile = LoadProfile.from_record(context.need("profile_load"))
    limits = LengthLimits(
        section.max_prompt_tokens, section.max_output_tokens, server.ready.context
    )
    context.record.add(
        _cut_share(profile, limits).metric(
            "cut_share",
            "",
            f"requests of the load longer than what is served: {server.ready.context} tokens of "
            "prompt and output together"
            + _said_limit("prompt", section.max_prompt_tokens)
            + _said_limit("output", section.max_output_tokens),
            "derived",
        )
    )
    return Load(profile, limits, pool, context.pilot.seed)


def _cut_share(profile: LoadProfile, limits: LengthLimits) -> Estimate:
    """Requests of the whole load that are longer than can be served."""
    some = profile.thinned(MOST_ORDERED)
    prompt, output = some["prompt_tokens"].to_numpy(), some["output_tokens"].to_numpy()
    cut, n = profile.cut_share(limits)
    return replace(share_over_time(limits.is_cut(prompt, output), prompt + output), value=cut / n)


def _said_limit(what: str, tokens: int | None) -> str:
    return "" if tokens is None else f", {tokens} of {what}"


def _wanted_context(section: DeployRollback, profile: LoadProfile) -> int:
    """Tokens that the longest request of the load takes, as far as the pilot allows; a server
    whose models have fewer positions says so, and what is longer is cut and counted."""
    if section.max_prompt_tokens and section.max_output_tokens:
        return min(profile.longest_request, section.max_prompt_tokens + section.max_output_tokens)
    return profile.longest_request


async def _rehearse(context: StageContext, server: ServerProcess, load: Load) -> Replayed:
    """Measure what the server can take, then replay the load with the rollback in it.

    Raises StageError as soon as the server has died.
    """
    async with load_client(server.address) as client:
        work = asyncio.create_task(_play(context, server, client, load))
        watch = asyncio.create_task(_watch(server))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            return work.result()
        except httpx.HTTPError as error:
            await asyncio.sleep(1.0)  # a process that dies closes its connections first
            server.check()
            raise StageError(
                f"the server did not answer: {type(error).__name__}: {error}",
                next_step=f"read {server.log}",
            ) from error
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)


async def _watch(server: ServerProcess) -> None:
    while True:
        server.check()
        await asyncio.sleep(0.25)


async def _play(
    context: StageContext, server: ServerProcess, client: LoadClient, load: Load
) -> Replayed:
    section, progress = context.pilot.deploy_rollback, context.progress
    capacity_per_s = {}
    for arm in server.ready.arms:
        progress.note(f"measuring what {arm} can take")
        capacity_per_s[arm] = await _capacity(context, client, load, arm)
    speedup = section.speedup or (
        section.target_utilisation * min(capacity_per_s.values()) / load.profile.rate_per_s
    )
    wanted = context.pilot.profile_load
    piece = load.profile.piece(
        wanted.piece, section.duration_s * speedup, wanted.piece_start_s, wanted.window_s
    )
    schedule = piece.schedule(speedup, load.limits)
    middle_s = section.rollback_at * section.duration_s
    # The order goes out just before a request is due, so that the time to the fallback's first
    # token is that of the switch and not of a gap in the load.
    nearest_s = min((p.intended_s for p in schedule), key=lambda due: abs(due - middle_s))
    order_s = nearest_s - ORDER_LEAD_S
    ended, peak_bytes = 0, server.resident_bytes

    def on_end(outcome: Outcome) -> None:
        nonlocal ended, peak_bytes
        ended += 1
        peak_bytes = max(peak_bytes, server.resident_bytes)
        progress.step("replay", ended, len(schedule), "requests")

    async def order() -> None:
        await asyncio.sleep(order_s - client.now_s())
        await client.switch(FALLBACK, "ordered in the middle of the replay")

    client.start()
    _, outcomes = await asyncio.gather(order(), client.replay(schedule, load.prompt, on_end))
    switches = await client.switches()
    gpu_bytes = await client.gpu_bytes()
    return Replayed(
        outcomes, switches, capacity_per_s, speedup, piece, schedule, peak_bytes, gpu_bytes
    )


async def _capacity(context: StageContext, client: LoadClient, load: Load, arm: str) -> float:
    """Requests a second that one arm completes when all come at once.

    A first burst of one request a slot says how many fit the time for the second, which is
    the measurement. Its last requests run alone, so the figure is low rather than high.
    Raises StageError when a request is not answered in full.
    """
    section = context.pilot.deploy_rollback
    budget_s = min(max(CAPACITY_SHARE * section.duration_s, CAPACITY_LEAST_S), CAPACITY_MOST_S)
    count = section.slots
    for attempt in range(2):
        outcomes, took_s = await client.burst(load.sample(count), load.prompt, arm)
        if bad := [o for o in outcomes if o.status != "ok"]:
            raise StageError(
                f"{len(bad)} of {count} requests to the arm {arm} failed before the replay "
                f"began: {bad[0].error}",
                next_step="read server.log in the stage's folder",
            )
        if attempt == 0:
            fitting = int(section.slots * budget_s / took_s)
            count = min(max(fitting, 2 * section.slots), section.queue + section.slots)
    return count / took_s


def _record_server(context: StageContext, server: ServerProcess, replayed: Replayed) -> None:
    record, arms = context.record, server.ready.arms
    parts = ", ".join(f"{name} {arm.resident_bytes / MB:.0f}" for name, arm in arms.items())
    record.measured(
        "memory_both_arms_mb",
        replayed.peak_bytes / MB,
        "MB",
        "largest resident set of the server process during the replay, runtime included; "
        f"growth by loading and warming, MB: {parts}",
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
            replayed.capacity_per_s[name],
            "requests/s",
            "requests sent at once over the time until the last had ended",
            arm=name,
        )
        for note in arm.notes:
            context.note(f"{name}: {note}")
    record.facts["backends"] = {name: arm.backend for name, arm in arms.items()}


def _record_replay(context: StageContext, replayed: Replayed) -> None:
    section, record = context.pilot.deploy_rollback, context.record
    requests = requests_table(replayed.outcomes)
    record.save_table("requests", requests)
    columns = ["time_s", "from_arm", "to_arm", "reason"]
    record.save_table("switches", pd.DataFrame(replayed.switches, columns=columns))
    record.add(
        Estimate(replayed.speedup, None, None, 1, "", basis="exact").metric(
            "replay_speedup",
            "",
            "as the pilot says"
            if section.speedup
            else f"{section.target_utilisation:g} of the smaller capacity over the profile's rate",
            "assumed" if section.speedup else "derived",
        )
    )
    _record_piece(context, replayed)
    _record_losses(context, requests)
    _record_rollback(context, requests, replayed.switches)
    _record_goodput(context, requests)


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
        record.measured("replayed_gap_cv", fidelity.piece_gap_cv, "", how)
    record.measured(
        "replayed_window_p95",
        fidelity.piece_p95,
        "requests",
        f"{how}: 95th percentile of the requests in windows of {fidelity.window_s:.3g} s; "
        f"{fidelity.p95:.4g} in the whole load",
    )
    if cut := sum(planned.cut for planned in replayed.schedule):
        context.note(
            f"cut to what the models hold: {cut} of {len(replayed.schedule)} replayed requests"
        )


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
    late_s = float((requests["sent_s"] - requests["intended_s"]).quantile(0.99))
    if late_s > 0.01:
        context.note(
            f"the client itself was up to {1e3 * late_s:.0f} ms late (p99); latencies count from "
            "the intended start and contain that"
        )


def _record_rollback(context: StageContext, requests: pd.DataFrame, switches: list[dict]) -> None:
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
        )
    phases = handover.phases(requests)
    answered = int((requests["status"] == "ok").sum())
    how = (
        f"{answered} of {len(requests)} requests, those answered in full, from the intended start; "
        "the switch lasted until the old arm had drained, {:.2f} s"
    )
    for name, estimate, labels in phase_latencies(requests, phases):
        text = how.format(handover.drained_s - handover.ordered_s)
        record.add(estimate.metric(name, "ms", text, **labels))


def _record_goodput(context: StageContext, requests: pd.DataFrame) -> None:
    section, record = context.pilot.deploy_rollback, context.record
    slos = context.need("profile_load").facts["slo"]
    met = slo_met(requests, slos)
    lasted_s = max(section.duration_s, float(requests["end_s"].max()))
    judged = met.notna()
    if judged.any():
        good = met.map(lambda value: value is True).to_numpy(bool)
        windows = max(1, min(MOST_WINDOWS, int(lasted_s / SHORTEST_WINDOW_S)))
        counts, _ = np.histogram(requests["intended_s"][good], windows, (0.0, lasted_s))
        how = (
            f"requests that met every target of their class, over {lasted_s:.1f} s; lost and "
            "truncated ones are misses"
        )
        goodput = rate_over_time(counts, lasted_s / windows)
        record.add(goodput.metric("goodput_per_s", "requests/s", how))
    else:
        record.missing("goodput_per_s", "requests/s", "no class of the profile has a target")
    for class_ in sorted(set(requests["class"]) | set(slos)):
        own = met[(requests["class"] == class_) & judged]
        how = ", ".join(f"{k} {v:g}" for k, v in slos.get(class_, {}).items() if v is not None)
        if own.empty:
            came = (requests["class"] == class_).sum()
            why = "the class has no target" if came else "no request of this class in the replay"
            record.missing("slo_met_share", "", why, **{"class": class_})
        else:
            of = requests.loc[own.index]
            waited_s = (of["end_s"] - of["intended_s"]).fillna(lasted_s)
            estimate = share_over_time(own.to_numpy(bool), waited_s)
            record.add(estimate.metric("slo_met_share", "", f"targets: {how}", **{"class": class_}))
