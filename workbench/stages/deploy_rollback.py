"""Stage 5: the hybrid served beside full precision, the load replayed, and the way back taken.

The server is a process of its own. This one plays the clients and keeps time, so it must not
wait for the interpreter lock of the engines it measures; and a server that dies costs an error
message, not the stage. There is nothing to resume: a killed replay is played again, whole.
"""

from __future__ import annotations

import asyncio
from functools import partial

import httpx
from anyio.from_thread import start_blocking_portal

from workbench.errors import StageError
from workbench.load.piece import LengthLimits
from workbench.load.profile import LoadProfile
from workbench.serve.carries import Capacity
from workbench.serve.load import Load, wanted_context
from workbench.serve.process import ServerProcess, server_process
from workbench.serve.rehearsal import CANDIDATE, FALLBACK
from workbench.serve.replay import LoadClient, Outcome, load_client
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.spec import ServeSpec
from workbench.stages.context import StageContext
from workbench.stages.deploy_rollback_record import Replayed, record_replay, record_server

CAPACITY_SHARE, CAPACITY_LEAST_S, CAPACITY_MOST_S = 0.05, 0.5, 10.0
"""Time for each arm's measurement of capacity, as a share of the replay, and its limits."""
ORDER_LEAD_S = 0.02
"""Ahead of the request that it is meant for; two connections of one client keep no order."""


def run(context: StageContext) -> None:
    """Fill the tables ``requests`` and ``switches`` and the figures of the rollback."""
    section = context.pilot.deploy_rollback
    trained, planned = context.need("train_qat"), context.need("hybrid_plan")
    readiness = context.pilot.readiness
    rule = section.rollback_rule
    profile = LoadProfile.from_record(context.need("profile_load"))
    spec = ServeSpec(
        arms={FALLBACK: trained.artefact(FALLBACK), CANDIDATE: planned.artefact(CANDIDATE)},
        fallback=FALLBACK,
        route=CANDIDATE,
        host=section.host,
        port=section.port,
        slots=section.slots,
        queue=section.queue,
        context=wanted_context(profile, section.max_prompt_tokens, section.max_output_tokens),
        threads=readiness.threads,
        device=context.device.name,
        hold_s=section.hold_s,
        batch_wait_s=section.batch_wait_ms / 1e3,
        rule=RollbackRule(**rule.model_dump()) if rule else None,
    )
    context.progress.note("starting the server with both arms")
    with server_process(spec, context.folder) as server:
        load = _load(context, server, profile)
        # A thread of its own, because a notebook's kernel has an event loop running already.
        with start_blocking_portal() as portal:
            replayed = portal.call(partial(_rehearse, context, server, load))
    record_server(context, server, replayed)
    record_replay(context, replayed)


def _load(context: StageContext, server: ServerProcess, profile: LoadProfile) -> Load:
    section = context.pilot.deploy_rollback
    limits = LengthLimits(
        section.max_prompt_tokens, section.max_output_tokens, server.ready.context
    )
    load = Load.of(profile, limits, context.need("train_qat"), context.pilot.seed)
    context.record.add(load.cut_share())
    return load


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
    capacity = {}
    for arm in server.ready.arms:
        progress.note(f"measuring what {arm} can take")
        capacity[arm] = await _capacity(context, client, load, arm)
    speedup = section.speedup or (
        section.target_utilisation
        * min(each.per_s for each in capacity.values())
        / load.profile.rate_per_s
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
    return Replayed(outcomes, switches, capacity, speedup, piece, schedule, peak_bytes, gpu_bytes)


async def _capacity(context: StageContext, client: LoadClient, load: Load, arm: str) -> Capacity:
    """What one arm completes when all requests come at once.

    A first burst of one request a slot says how many fit the time for the second, which is
    the measurement.
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
    return Capacity.of(outcomes, took_s, section.slots)
