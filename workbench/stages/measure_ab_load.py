"""Stage 3, second half: the arms under the profile's own load, in alternating blocks.

The pilot's arms are served by one process, all loaded before the first block; an arm that has
nothing to do waits for a signal and takes no processor. Addresses of others are sent the same
requests as text. After each block the pilot's arms judge a slice of the held-out excerpts, in the
order of that block, so that quality stands in the same session. Finished blocks are kept in
``load/`` in the stage's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import pandas as pd

from workbench.data.tokenizer import load_tokenizer
from workbench.errors import StageError
from workbench.files import read_json, write_json
from workbench.load.piece import LengthLimits, Piece
from workbench.load.planned import PlannedRequest
from workbench.load.profile import LoadProfile
from workbench.measure.meters import EnergySession
from workbench.measure.noise import require_quiet
from workbench.measure.quality import QualityProbes
from workbench.measure.session import noise_facts
from workbench.measure.statistics import Estimate, count, quantile
from workbench.measure.under_load import SOURCE, dispatch_delays, left_out, load_figures
from workbench.records.stage_record import StageRecord
from workbench.serve.address import Tried, try_address
from workbench.serve.carries import ONE_BURST, Capacity, measured_capacity
from workbench.serve.client import LoadProcesses, load_processes
from workbench.serve.endpoint import Endpoint, ask, probe
from workbench.serve.load import Load, wanted_context
from workbench.serve.load_session import LoadedArm, LoadSession, in_blocks
from workbench.serve.process import ServerProcess, server_process
from workbench.serve.replay import FAULTS, Outcome
from workbench.serve.spec import ServeSpec
from workbench.stages.context import StageContext
from workbench.stages.measure_ab_load_energy import (
    metered_blocks,
    node_meters,
    record_load_energy,
)
from workbench.stages.metered import StageMeters, closed, step_load, trusted
from workbench.wording.counts import number_of

BASELINE = "full_precision"
REPLAYED_SHARE = 0.6
"""Of the time for this part in which requests are due; the rest goes into starting the clients of
each turn and waiting for its last answers."""
CAPACITY_SHARE, CAPACITY_LEAST_S, CAPACITY_MOST_S = 0.01, 0.5, 10.0
"""Time for each arm's measurement of capacity, as a share of the budget, and its limits."""
WAKE_TOKENS = 8
"""Of the untimed answer before a turn, which must be the judged model's own."""
NOT_OF_AN_ADDRESS = {
    "bits_per_byte": ("bits/byte", "no probabilities of a given text"),
    "model_memory_mb": ("MB", "no memory of its own"),
    "latency_ms": ("ms", "no time of its own alone: others may be using it"),
}


@dataclass(frozen=True)
class Pace:
    """How fast the load is replayed: speedup, 1 is its own rate; and what that rests on."""

    speedup: float
    capacity: dict[str, Capacity]


@dataclass(frozen=True)
class Judged:
    """The pilot's arms as their quality was judged. answers: own arm -> what its engine says after
    ``prompt``, ``WAKE_TOKENS`` long."""

    prompt: list[int]
    answers: dict[str, str]


def measure_under_load(
    context: StageContext,
    trained: StageRecord,
    judged: Judged,
    probes: QualityProbes | None,
    shapes: pd.DataFrame,
    meters: StageMeters,
) -> None:
    """Fill the tables ``load_requests``, ``load_energies`` and ``load_noise`` and the figures with
    ``source=load``.

    shapes: table ``blocks`` of the fixed shapes, whose times split the energy of the load between
    prompt and generated tokens. probes: judge a slice of the excerpts after each block; None where
    that was done before.

    Raises StageError when a server or a client dies, or an address does not answer.
    """
    section = context.pilot.measure_ab
    slos = context.need("profile_load").facts["slo"]
    if not section.load.blocks:
        why = "left out: measure_ab.load.blocks is 0"
        for metric in left_out(list(section.arms), sorted(slos), why):
            context.record.add(metric)
        closed(meters)
        record_load_energy(context, shapes, why_none=why)
        return
    folder = context.folder / "load"
    folder.mkdir(exist_ok=True)
    profile = LoadProfile.from_record(context.need("profile_load"))
    with ExitStack() as open_things:
        tried = {}
        for name, address in section.addresses.items():
            context.progress.note(f"looking whether {name} answers")
            tried[name] = try_address(name, address, folder)
        context.progress.note("starting the server with all arms")
        server = open_things.enter_context(server_process(_spec(context, trained, profile), folder))
        own = open_things.enter_context(
            load_processes(Endpoint(server.address), folder, check=server.check)
        )
        limits = LengthLimits(
            section.load.max_prompt_tokens, section.load.max_output_tokens, server.ready.context
        )
        load = Load.of(profile, limits, trained, context.pilot.seed)
        pace = _pace(context, own, load)
        for text in meters.session.learn(step_load(context.device.name)):
            context.note(text)
        of_nodes = {
            name: open_things.enter_context(node_meters(context, name, tried[name].endpoint))
            for name, address in section.addresses.items()
            if address.meters
        }
        count, block_s = _blocks(context, [meters.session, *of_nodes.values()])
        piece = _piece(context, load, count * block_s * pace.speedup)
        schedule = piece.schedule(pace.speedup, load.limits)
        clients = {
            name: open_things.enter_context(load_processes(each.endpoint, folder))
            for name, each in tried.items()
        }
        arms = {
            **{
                name: _own_arm(name, own, load, judged, meters.session) for name in section.own_arms
            },
            **_others(context, trained, clients, load, judged, of_nodes),
        }

        def processes() -> list[int]:
            ids = [pid for client in (own, *clients.values()) for pid in client.process_ids]
            return [*server.process_ids, *ids]

        session = LoadSession(
            folder,
            arms,
            in_blocks(schedule, block_s, count),
            context.pilot.readiness.quiet,
            context.pilot.seed,
            processes,
            block_s,
        )
        if done := session.finished():
            context.note(f"the session under load was interrupted after {number_of(done, 'block')}")
        before = require_quiet(context.pilot.readiness.quiet, context.note)
        session.run(
            section.load.budget_s,
            lambda done, most: context.progress.step("arms under load", done, most, "turns"),
            probes.judge if probes else lambda block, order: None,
        )
        _record_network(context, server, tried)
        closed(meters)
    requests, noise = session.requests(), session.noise()
    context.record.save_table("load_requests", requests)
    context.record.save_table("load_noise", noise)
    context.record.facts["load_noise"] = noise_facts(before, noise)
    _record_pace(context, load, pace, piece)
    late = _record_dispatch(context, requests)
    for metric in load_figures(requests, session.gaps(), list(arms), slos, block_s, FAULTS, late):
        context.record.add(metric)
    record_load_energy(context, shapes, requests, trusted(session.energies(), meters.balances))
    _record_answers(context, requests, judged.answers)
    _record_addresses(context, requests, tried)


def _spec(context: StageContext, trained: StageRecord, profile: LoadProfile) -> ServeSpec:
    section = context.pilot.measure_ab
    wanted = section.load
    own = section.own_arms
    drafts = {"speculative": trained.artefact("ternary")} if "speculative" in own else {}
    return ServeSpec(
        arms={n: trained.artefact(BASELINE if n in drafts else section.model_of(n)) for n in own},
        drafts=drafts,
        fallback=BASELINE,
        route=BASELINE,
        slots=wanted.slots,
        queue=wanted.queue,
        context=wanted_context(profile, wanted.max_prompt_tokens, wanted.max_output_tokens),
        threads=context.pilot.readiness.threads,
        device=context.device.name,
        core=context.pilot.readiness.core,
        packing=context.pilot.readiness.packing,
        cores={name: of.core for name, of in section.in_cores.items()},
    )


def _blocks(context: StageContext, meters: Sequence[EnergySession]) -> tuple[int, float]:
    """How many blocks, and how long; longer and fewer where a meter needs it. Decided once and
    kept, so that every block of the session is of one kind."""
    section = context.pilot.measure_ab
    path = context.folder / "load" / "blocks.json"
    if not path.exists():
        planned = metered_blocks(section, REPLAYED_SHARE, meters)
        if planned.note:
            context.note(planned.note)
        write_json(path, {"blocks": planned.blocks, "block_s": planned.block_s})
    kept = read_json(path)
    return kept["blocks"], kept["block_s"]


def _pace(context: StageContext, client: LoadProcesses, load: Load) -> Pace:
    """The load's own rate, or what the slowest of the pilot's arms can take; decided once and kept,
    so that every block of the session is of one kind. No address is sent a burst for it."""
    section = context.pilot.measure_ab.load
    path = context.folder / "load" / "pace.json"
    if not path.exists():
        budget_s = min(max(CAPACITY_SHARE * section.budget_s, CAPACITY_LEAST_S), CAPACITY_MOST_S)
        capacity = {}
        for arm in context.pilot.measure_ab.own_arms:
            context.progress.note(f"measuring what {arm} can take")
            capacity[arm] = measured_capacity(
                client, load, arm, section.slots, section.queue, budget_s
            )
        slowest = min(each.per_s for each in capacity.values()) / load.profile.rate_per_s
        fitted = 1.0 if slowest >= 1 else section.target_utilisation * slowest
        pace = Pace(section.speedup or fitted, capacity)
        write_json(path, asdict(pace))
    found = read_json(path)
    of_arms = {arm: Capacity(**fields) for arm, fields in found["capacity"].items()}
    return Pace(found["speedup"], of_arms)


def _piece(context: StageContext, load: Load, length_s: float) -> Piece:
    wanted = context.pilot.profile_load
    return load.profile.piece(wanted.piece, length_s, wanted.piece_start_s, wanted.window_s)


def _own_arm(
    name: str, client: LoadProcesses, load: Load, judged: Judged, meters: EnergySession
) -> LoadedArm:
    def play(schedule: Sequence[PlannedRequest]) -> list[Outcome]:
        client.lead_s = meters.apart_s()
        return client.replay(schedule, load.prompt, model=name)

    def wake() -> str:
        return ask(client.endpoint, judged.prompt, WAKE_TOKENS, name)

    return LoadedArm(play, wake, meters, lambda: client.origin_s)


def _others(
    context: StageContext,
    trained: StageRecord,
    clients: dict[str, LoadProcesses],
    load: Load,
    judged: Judged,
    meters: dict[str, EnergySession],
) -> dict[str, LoadedArm]:
    """Addresses: they are sent the same prompts as text, as their tokens are others."""
    tokenizer = load_tokenizer(str(trained.artefact("tokenizer")))
    prompt = tokenizer.decode(judged.prompt)

    def play(
        client: LoadProcesses, lead_s: float, schedule: Sequence[PlannedRequest]
    ) -> list[Outcome]:
        client.lead_s = lead_s
        return client.replay(schedule, lambda planned: tokenizer.decode(load.prompt(planned)))

    def wake(client: LoadProcesses) -> None:
        try:
            ask(client.endpoint, prompt, WAKE_TOKENS)
        except StageError as error:  # its timed requests are counted as what they become
            context.note(str(error))

    def origin_s(client: LoadProcesses) -> float:
        return client.origin_s

    return {
        name: LoadedArm(
            partial(play, client, meters[name].apart_s() if name in meters else 0.0),
            partial(wake, client),
            meters.get(name),
            partial(origin_s, client),
            "no_meter: an address gives no energy; declare the meters of the node that serves it "
            f"(measure_ab.arms.{name}.meters)",
        )
        for name, client in clients.items()
    }


def _record_pace(context: StageContext, load: Load, pace: Pace, piece: Piece) -> None:
    record, section = context.record, context.pilot.measure_ab.load
    record.facts["load_piece"] = piece.to_json()
    for lost in piece.fidelity.lost:
        context.note(f"under load: {lost}")
    record.add(load.cut_share(**SOURCE))
    if section.speedup:
        how = "as the pilot says"
    elif pace.speedup == 1:
        how = "the load's own, which the slowest arm of the pilot can take"
    else:
        how = (
            f"{section.target_utilisation:g} of the slowest arm's capacity, which is less than the "
            "load's own rate"
        )
    record.add(
        Estimate(pace.speedup, None, None, 1, "", basis="exact").metric(
            "replay_speedup",
            "",
            f"pace of the replay, 1 is the load's own rate: {how}",
            "assumed" if section.speedup else "derived",
            **SOURCE,
        )
    )
    for arm, capacity in pace.capacity.items():
        record.measured(
            "capacity_per_s",
            capacity.per_s,
            "requests/s",
            "requests sent at once over the time until the last had ended; full, at most "
            f"{capacity.at_most_per_s:.4g}",
            reason=ONE_BURST,
            arm=arm,
            **SOURCE,
        )


def _record_dispatch(context: StageContext, requests: pd.DataFrame) -> str | None:
    """How late the clients sent; why nothing may be read from the latencies, None if it may."""
    most_ms = context.pilot.measure_ab.load.max_dispatch_delay_ms
    delays = dispatch_delays(requests)
    for named, delay in delays.items():
        how = "sent minus intended, of the client itself"
        context.record.add(delay.metric("dispatch_delay_ms", "ms", how, quantile=named, **SOURCE))
    late_ms = delays["p99"].value
    if late_ms is None or late_ms <= most_ms:
        return None
    why = (
        f"refused: the client itself sent {late_ms:.3g} ms late (p99), allowed are {most_ms:g} "
        "(measure_ab.load.max_dispatch_delay_ms); end what else runs on this machine, or lower "
        "measure_ab.load.speedup, and measure again"
    )
    context.note(why)
    return why


def _record_network(context: StageContext, server: ServerProcess, tried: dict[str, Tried]) -> None:
    """What of every latency is the network's: of the pilot's arms that of this machine."""
    here = probe(Endpoint(server.address))
    found = {
        **dict.fromkeys(context.pilot.measure_ab.own_arms, here),
        **{name: each.probe for name, each in tried.items()},
    }
    for arm, each in found.items():
        for name, times_ms in (
            ("network_connect_ms", each.connects_ms),
            ("network_round_trip_ms", each.round_trips_ms),
        ):
            how = f"median of {each.count}, GET {each.path}; part of every latency of this arm"
            median = quantile(times_ms, 0.5)
            context.record.add(median.metric(name, "ms", how, arm=arm, **SOURCE))


def _record_answers(context: StageContext, requests: pd.DataFrame, judged: dict[str, str]) -> None:
    """Whether what was timed is what was judged: the untimed answers of each block."""
    for arm, answer in judged.items():
        own = requests[requests["arm"] == arm].drop_duplicates("block")["answer"]
        how = (
            f"answers of {WAKE_TOKENS} tokens, asked for between the blocks, that were not those "
            "of the engine that judged the arm's quality"
        )
        changed = count(int((own != answer).sum()), len(own))
        context.record.add(changed.metric("changed_answers", "answers", how, arm=arm, **SOURCE))


def _record_addresses(
    context: StageContext, requests: pd.DataFrame, tried: dict[str, Tried]
) -> None:
    """What an address does not give, and how its requests differ from the others'."""
    for arm, each in tried.items():
        for name, (unit, what) in NOT_OF_AN_ADDRESS.items():
            why = f"not measured: an address gives {what}"
            context.record.missing(name, unit, why, arm=arm, **SOURCE)
        own = requests[(requests["arm"] == arm) & (requests["status"] == "ok")]
        counted = own["counted_prompt_tokens"].dropna()
        facts = {
            "endpoint": each.endpoint.address,
            "model": each.endpoint.model,
            "fixed_length": each.endpoint.fixed_length,
            "prompt_tokens": int(own.loc[counted.index, "prompt_tokens"].sum()),
            "counted_prompt_tokens": int(counted.sum()) if len(counted) else None,
            "wanted_tokens": int(own["wanted_tokens"].sum()),
            "output_tokens": int(own["output_tokens"].sum()),
            "shorter": int((own["output_tokens"] < own["wanted_tokens"]).sum()),
            "answered": len(own),
        }
        context.record.facts.setdefault("addresses", {})[arm] = facts
        asked = (
            f"{arm} counts {number_of(facts['counted_prompt_tokens'], 'prompt token')}"
            if len(counted)
            else f"{arm} counts no prompt tokens"
        )
        context.note(
            f"{asked} where the pilot's tokenizer counts {facts['prompt_tokens']}, and gave "
            f"{number_of(facts['output_tokens'], 'output token')} of {facts['wanted_tokens']} "
            f"wanted, by its own count; {facts['shorter']} of {facts['answered']} answers were "
            "shorter than wanted"
            + ("" if each.endpoint.fixed_length else ", because it is not asked for fixed lengths")
        )
