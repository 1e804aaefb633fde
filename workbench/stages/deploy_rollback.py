"""Stage 5: the hybrid served beside full precision, the load replayed, and the way back taken.

The server is a process of its own, and so are the clients that play the load: neither waits for
the other's interpreter, nor for this one's, and one that dies costs an error message, not the
stage. There is nothing to resume: a killed replay is played again, whole; the queue's
tuning before it (:mod:`.deploy_rollback_tuning`) goes on with the points it has.
"""

from __future__ import annotations

import numpy as np

from workbench.load.piece import LengthLimits
from workbench.load.profile import LoadProfile
from workbench.machine.memory import TreeMemory
from workbench.measure.meters import EnergySession
from workbench.measure.noise import NoiseWatch, require_quiet
from workbench.measure.session import noise_facts
from workbench.serve.carries import measured_capacity
from workbench.serve.client import LoadProcesses, load_processes
from workbench.serve.drill import Taken
from workbench.serve.endpoint import Endpoint
from workbench.serve.load import Load
from workbench.serve.process import ServerProcess, server_process
from workbench.serve.rehearsal import FALLBACK
from workbench.stages.context import StageContext
from workbench.stages.deploy_rollback_drill import drill_of, pace, record_drill, served_spec
from workbench.stages.deploy_rollback_energy import (
    record_deployment_energy,
    replay_energies,
    replay_window,
)
from workbench.stages.deploy_rollback_record import Replayed, record_replay, record_server
from workbench.stages.deploy_rollback_tuning import tuned_in_stage
from workbench.stages.metered import closed, stage_meters, step_load

CAPACITY_SHARE, CAPACITY_LEAST_S, CAPACITY_MOST_S = 0.05, 0.5, 10.0
"""Time for each arm's measurement of capacity, as a share of the replay, and its limits."""
NOISE_STRETCHES = 20
"""Of the replay; what else the machine did is read for each."""
ORDER_LEAD_S = 0.02
"""Ahead of the request that it is meant for; two connections of one client keep no order."""


def run(context: StageContext) -> None:
    """Fill the tables ``requests`` and ``switches`` and the figures of the rollback."""
    profile = LoadProfile.from_record(context.need("profile_load"))
    for stage in ("train_qat", "hybrid_plan"):
        context.need(stage)
    spec = served_spec(context.pilot, context.upstream, context.device.name)
    tuned = tuned_in_stage(context)
    context.progress.note("starting the server with both arms")
    with stage_meters(context) as meters, server_process(spec, context.folder) as server:
        load = _load(context, server, profile)
        endpoint = Endpoint(server.address)
        with load_processes(endpoint, context.folder, check=server.check) as client:
            replayed = _rehearse(context, server, client, load, meters.session)
            closed(meters)
            ways = _drill(context, server, client, load, replayed)
    record_server(context, server, replayed)
    record_replay(context, replayed, tuned)
    record_deployment_energy(context, replayed, meters.balances)
    record_drill(context, replayed, ways)


def _load(context: StageContext, server: ServerProcess, profile: LoadProfile) -> Load:
    section = context.pilot.deploy_rollback
    limits = LengthLimits(
        section.max_prompt_tokens, section.max_output_tokens, server.ready.context
    )
    load = Load.of(profile, limits, context.need("train_qat"), context.pilot.seed)
    context.record.add(load.cut_share())
    return load


def _rehearse(
    context: StageContext,
    server: ServerProcess,
    client: LoadProcesses,
    load: Load,
    meters: EnergySession,
) -> Replayed:
    """Measure what the server can take, then replay the load with the rollback in it.

    Raises StageError as soon as the server or a client has died.
    """
    section, progress = context.pilot.deploy_rollback, context.progress
    quiet = context.pilot.readiness.quiet
    budget_s = min(max(CAPACITY_SHARE * section.duration_s, CAPACITY_LEAST_S), CAPACITY_MOST_S)
    capacity = {}
    for arm in server.ready.arms:
        progress.note(f"measuring what {arm} can take")
        capacity[arm] = measured_capacity(client, load, arm, section.slots, section.queue, budget_s)
    speedup = pace(section, load, capacity)
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
    memory = TreeMemory(server.process.pid)
    began_bytes = peak_bytes = memory.now_bytes()

    def on_progress(ended: int) -> None:
        nonlocal peak_bytes
        peak_bytes = max(peak_bytes, memory.now_bytes())
        watch.look()
        progress.step("replay", ended, len(schedule), "requests")

    def order() -> None:
        server.switch(FALLBACK, "ordered in the middle of the replay")

    for text in meters.learn(step_load(context.device.name)):
        context.note(text)
    meters.rest()
    before = require_quiet(quiet, context.note)
    watch = NoiseWatch(
        quiet,
        lambda: [*server.process_ids, *client.process_ids],
        section.duration_s / NOISE_STRETCHES,
    )
    client.lead_s = meters.apart_s()
    outcomes = client.replay(
        schedule, load.prompt, orders=[(order_s, order)], on_progress=on_progress
    )
    watch.look(last=True)
    grown_bytes = memory.now_bytes() - began_bytes
    window = replay_window(meters, client.origin_s, section.duration_s)
    context.record.save_table("noise", watch.table())
    context.record.facts["noise"] = noise_facts(before, watch.table())
    switches = [
        {**switch, "time_s": switch["time_s"] - client.origin_s} for switch in server.switches()
    ]
    gpu_bytes = server.gpu_bytes()
    energies = replay_energies(meters, window, outcomes, switches)
    return Replayed(
        outcomes,
        switches,
        capacity,
        speedup,
        piece,
        schedule,
        peak_bytes,
        grown_bytes,
        gpu_bytes,
        energies,
    )


def _drill(
    context: StageContext,
    server: ServerProcess,
    client: LoadProcesses,
    load: Load,
    replayed: Replayed,
) -> list[Taken]:
    """Take the way back in the other ways, each under a share of the load at the replay's pace."""
    section = context.pilot.deploy_rollback.drill
    if not section.budget_s or not section.ways:
        return []
    drill = drill_of(
        context.pilot, server, client, load, replayed.speedup, section.ways, context.folder
    )
    first_s = [o.first_token_s - o.intended_s for o in replayed.outcomes if o.first_token_s]
    if first_s:
        drill.usual(float(np.median(first_s)))
    return drill.run(
        section.ways,
        section.budget_s,
        lambda way: context.progress.note(f"taking the way back: {way}"),
    )
