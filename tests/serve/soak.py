"""Hundreds of streams for minutes, an overload, switches, kills: a server of real arms.

Run: ``python tests/serve/soak.py [--seconds 600] [--streams 200 500] [--out FILE]``, or
``make soak``. Prints a JSON line for each; docs/results/serving.jsonl has those of a release.

- *streams*: so many clients, each with a stream open all the time, while the route changes every
  second. Right: no error, nothing cut, no growth of memory.
- *overload*: three times what the server can do. Right: accepted requests keep their target, the
  others are answered 429 with the time after which the queue of that moment is empty.
- *switches*: 20,000 changes of the route, one every four seconds of a day. Right: no growth.
- *kills*: 20 of the candidate's process at random moments, beside some streams. Right: none lost
  without a token, and what is cut says so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soak_client import Client, Seen, watched

from workbench.data.document import Document
from workbench.data.tokenizer import train_tokenizer
from workbench.machine.cpu import cpu
from workbench.machine.environment import git_state
from workbench.model.build import build_model
from workbench.pilot.sections.model import Model
from workbench.serve.process import ServerProcess, server_process
from workbench.serve.spec import ServeSpec
from workbench.ternary.packed import save_packed
from workbench.ternary.post_training import ternarize_post_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT, PROMPT = 128, 16
SWITCHES, KILLS, KILLED_STREAMS = 20_000, 20, 8
SLO_TTFT_S = 5.0
"""Of the overload: its slots and queue are made so that a full one drains within it."""


def arms_in(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Path]:
    """A full-precision model and another one, ternary, so that their answers differ: each of a
    million weights and random."""
    section = Model(preset="tiny-1m")
    for seed, name in enumerate(("full_precision", "hybrid")):
        model = build_model(section, len(tokenizer), CONTEXT, seed)
        if name == "full_precision":
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        else:
            made = ternarize_post_training(model, section.policy)
            save_packed(model, folder / name, made.precisions, made.threshold, tokenizer)
    return {name: folder / name for name in ("full_precision", "hybrid")}


def spec_of(arms: dict[str, Path], **fields: Any) -> ServeSpec:
    fixed = {"fallback": "full_precision", "route": "hybrid", "weight": 0.5, "threads": 1}
    return ServeSpec(arms, **{**fixed, "context": CONTEXT, "hold_s": 0.0, **fields})


async def _one_stream(client: Client, seen: Seen, rng: random.Random, end_s: float) -> None:
    while time.monotonic() < end_s:
        wanted = rng.randint(16, 64)
        prompt = [rng.randrange(5, 250) for _ in range(PROMPT)]
        fields = {"prompt": prompt, "max_tokens": wanted, "stream": True, "ignore_eos": True}
        seen.take(await client.post("/v1/completions", fields), wanted)
    await client.aclose()


async def _switching(server: ServerProcess, end_s: float) -> int:
    client, done = Client(server), 0
    orders = [("hybrid", 1.0), ("full_precision", 1.0), ("hybrid", 0.5)]
    while time.monotonic() < end_s:
        arm, weight = orders[done % 3]
        order = {"arm": arm, "weight": weight, "force": True}
        reply = await client.post("/workbench/route", order)
        assert reply.status == 200, reply
        done += 1
        await asyncio.sleep(1.0)
    await client.aclose()
    return done


async def streams(server: ServerProcess, count: int, seconds: float) -> dict[str, Any]:
    """``count`` streams for ``seconds``; a row."""
    seen, end_s = Seen(), time.monotonic() + seconds
    async with watched(server) as memory:
        switching = asyncio.create_task(_switching(server, end_s))
        rngs = map(random.Random, range(count))
        await asyncio.gather(*(_one_stream(Client(server), seen, rng, end_s) for rng in rngs))
        switches = await switching
    more = {"streams": count, "seconds": seconds, "switches": switches}
    return seen.row("streams", memory) | more


async def overload(
    server: ServerProcess, seconds: float, slots: int, step_s: float
) -> dict[str, Any]:
    """Three times the rate that ``slots`` can do with steps of ``step_s``; a row."""
    slow = {"arm": "hybrid", "fault": "slow_steps", "seconds": step_s}
    async with aclosing(Client(server)) as client:
        assert (await client.post("/workbench/drill", slow)).status == 200
    tokens = 16
    rate = 3 * slots / (tokens * step_s)
    seen = Seen()
    first_at: list[tuple[float, float]] = []
    refused: list[tuple[float, float]] = []
    fields = {"prompt": [5] * PROMPT, "max_tokens": tokens, "stream": True, "ignore_eos": True}

    async def ask() -> None:
        at = time.monotonic()
        async with aclosing(Client(server)) as client:
            reply = await client.post("/v1/completions", fields)
        if reply.status == 429 and reply.retry_after_s is not None:
            refused.append((at, reply.retry_after_s))
            return
        seen.take(reply, tokens)
        if reply.first_s is not None:
            first_at.append((at, reply.first_s))

    began, asked = time.monotonic(), []
    async with watched(server) as memory:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            asked.append(asyncio.create_task(ask()))
        await asyncio.gather(*asked)
    waits = [first for _, first in first_at]
    # Of the requests that were there when one was refused, when the last one began.
    empty_s = [
        (max((at + first for at, first in first_at if at < then), default=then) - then, again)
        for then, again in refused
    ]
    return seen.row("overload", memory) | {
        "seconds": seconds, "requests": len(asked), "refused": len(refused),
        "slo_ttft_s": SLO_TTFT_S, "slo_met_share": sum(w <= SLO_TTFT_S for w in waits) / len(waits),
        "retry_after_s": statistics.median(again for _, again in refused),
        "queue_empty_after_s": statistics.median(empty for empty, _ in empty_s),
        "retry_after_too_short": sum(again < empty for empty, again in empty_s) / len(empty_s),
    }  # fmt: skip


async def switches(server: ServerProcess, count: int) -> dict[str, Any]:
    """``count`` changes of the route, while some streams run; a row."""
    seen, ended = Seen(), asyncio.Event()

    async def stream(rng: random.Random) -> None:
        client = Client(server)
        while not ended.is_set():
            await _one_stream(client, seen, rng, time.monotonic() + 0.5)

    async with watched(server) as memory:
        running = [asyncio.create_task(stream(random.Random(k))) for k in range(2)]
        began = time.monotonic()
        async with aclosing(Client(server)) as client:
            for number in range(count):
                arm, weight = ("hybrid", 1.0) if number % 2 else ("full_precision", 1.0)
                order = {"arm": arm, "weight": weight, "force": True, "reason": f"number {number}"}
                reply = await client.post("/workbench/route", order)
                assert reply.status == 200, reply
        seconds = time.monotonic() - began
        ended.set()
        await asyncio.gather(*running)
    return seen.row("switches", memory) | {"switches": count, "seconds": seconds}


async def kills(server: ServerProcess, count: int) -> dict[str, Any]:
    """``count`` kills of the candidate's process at random moments, while some streams run; a
    row, with the median of what it took until the fallback gave a first token."""
    seen, ended, rng = Seen(), asyncio.Event(), random.Random(count)
    killed: dict[int, float] = {}
    """Process -> when it was."""

    async def stream(rng: random.Random) -> None:
        client = Client(server)
        while not ended.is_set():
            await _one_stream(client, seen, rng, time.monotonic() + 0.5)

    def candidate() -> dict[str, Any]:
        return server.arm_states()["hybrid"]

    async with watched(server) as memory, aclosing(Client(server)) as client:
        running = [asyncio.create_task(stream(random.Random(k))) for k in range(KILLED_STREAMS)]
        began = time.monotonic()
        for _ in range(count):
            state = await asyncio.to_thread(candidate)
            while state["state"] != "up" or state["pid"] in killed:
                await asyncio.sleep(0.05)
                state = await asyncio.to_thread(candidate)
            # Steps of 5 ms, so that streams last; and the next start waits as the first one does.
            slow = {"arm": "hybrid", "fault": "slow_steps", "seconds": 0.005}
            for path, order in (
                ("/workbench/drill", slow),
                ("/workbench/route", {"arm": "hybrid", "force": True}),
            ):
                assert (await client.post(path, order)).status == 200
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            os.kill(state["pid"], signal.SIGKILL)
            killed[state["pid"]] = time.monotonic()
        await asyncio.sleep(1.0)
        seconds = time.monotonic() - began
        ended.set()
        await asyncio.gather(*running)
    firsts = sorted(seen.first_of["full_precision"])
    waits = [next(at for at in firsts if at > kill) - kill for kill in killed.values()]
    more = {"kills": count, "seconds": seconds, "streams": KILLED_STREAMS}
    return seen.row("kills", memory) | more | {"first_fallback_token_s": statistics.median(waits)}


def soak(
    counts: list[int], seconds: float, overload_s: float, switch_count: int, kill_count: int,
    tell: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """Each of the four on a server of its own, none where its count is 0; ``tell`` is given the
    rows."""
    text = "def f(x):\n    return x  # a line of code\n" * 40
    with tempfile.TemporaryDirectory() as folder:
        arms = arms_in(Path(folder), train_tokenizer([Document("one", "soak", text)], 300))
        for count in counts:
            wide = spec_of(arms, slots=count, queue=2 * count)
            with server_process(wide, Path(folder)) as server:
                tell(asyncio.run(streams(server, count, seconds)))
        slots, step_s = 4, 0.05
        # 16 tokens of 50 ms: 12 that wait for 4 slots are under way within 3 s.
        narrow = spec_of(arms, slots=slots, queue=12, weight=1.0, faults=True)
        if overload_s:
            with server_process(narrow, Path(folder)) as server:
                tell(asyncio.run(overload(server, overload_s, slots, step_s)))
        if switch_count:
            with server_process(spec_of(arms, slots=4), Path(folder)) as server:
                tell(asyncio.run(switches(server, switch_count)))
        if kill_count:
            breakable = spec_of(arms, slots=KILLED_STREAMS, weight=1.0, faults=True)
            with server_process(breakable, Path(folder)) as server:
                tell(asyncio.run(kills(server, kill_count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--streams", type=int, nargs="*", default=[200, 500])
    parser.add_argument("--overload", type=float, default=60.0, help="seconds; 0 leaves it out")
    parser.add_argument("--switches", type=int, default=SWITCHES)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--out", type=Path, help="the rows are added to it")
    given = parser.parse_args()

    def tell(row: dict[str, Any]) -> None:
        about = {
            "model": "tiny-1m, random", "machine": f"{cpu().model}, {os.cpu_count()} cores",
            "load_average": os.getloadavg()[0], "commit": str(git_state()["commit"])[:7],
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }  # fmt: skip
        line = json.dumps({k: _short(v) for k, v in (row | about).items()})
        print(line, flush=True)
        if given.out:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    overload_s = min(given.overload, given.seconds)
    soak(given.streams, given.seconds, overload_s, given.switches, given.kills, tell)


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
