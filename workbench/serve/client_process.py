"""What a client process runs: orders on its standard input, answers on its standard output.

``{"play": folder, "open_ahead_s": s}``: read the requests there, prepare all that playing them
takes, answer ``{"ready": true}``. ``{"origin_s": t}``: play them from that ``time.monotonic()`` on,
meanwhile say ``{"ended": n}``, write what became of them beside the requests, and answer
``{"done": true}``. When its input closes its parent is gone and it ends. Everything large goes
through files, and the collector of garbage rests while a load runs, because its pauses would be
read as the server's.
"""

from __future__ import annotations

import asyncio
import gc
import json
import mmap
import os
import sys
from array import array
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from workbench.child import allow_open_files
from workbench.load.planned import PlannedRequest
from workbench.serve.endpoint import Endpoint
from workbench.serve.exchange import fine_loop
from workbench.serve.replay import Outcome, load_client

ROWS, REQUESTS, OUTCOMES, GAPS = "rows.json", "requests.bin", "outcomes.jsonl", "gaps.f32"
SAID_EVERY_S = 0.2
PLANNED = len(fields(PlannedRequest))


_NAMES = [each.name for each in fields(Outcome) if each.name != "gaps_s"]


def outcome_of(row: Sequence[Any], gaps_s: array[float]) -> Outcome:
    """An outcome from its row, and the gaps, which have a file of their own."""
    return Outcome(**dict(zip(_NAMES, row, strict=True)), gaps_s=gaps_s)


async def _play(
    endpoint: Endpoint,
    silence_s: float,
    order: dict[str, Any],
    rows: list[list[Any]],
) -> list[Outcome]:
    """rows: a planned request, then begin and size of its body."""
    schedule = [PlannedRequest(*row[:PLANNED]) for row in rows]
    bodies = {row[0]: slice(row[-2], row[-2] + row[-1]) for row in rows}
    loop, ended = asyncio.get_running_loop(), 0

    def on_end() -> None:
        nonlocal ended
        ended += 1

    def say() -> None:
        _say({"ended": ended})
        loop.call_later(SAID_EVERY_S, say)

    with (Path(order["play"]) / REQUESTS).open("rb") as file, _mapped(file.fileno()) as requests:
        async with load_client(endpoint, silence_s) as client:
            _say({"ready": True})
            client.start(json.loads(sys.stdin.readline())["origin_s"])
            loop.add_reader(sys.stdin.fileno(), _parent_is_gone)
            say()
            return await client.play(
                schedule,
                lambda planned: requests[bodies[planned.id]],
                on_end,
                order["open_ahead_s"],
            )


def _mapped(file: int) -> mmap.mmap:
    return mmap.mmap(file, 0, access=mmap.ACCESS_READ)


def _parent_is_gone() -> None:
    """Nothing is said to a client that plays, so its input is readable only when it closes."""
    os._exit(1)


def _write(place: Path, outcomes: Sequence[Outcome]) -> None:
    with (place / OUTCOMES).open("w", encoding="utf-8") as rows, (place / GAPS).open("wb") as gaps:
        for outcome in outcomes:
            row = [getattr(outcome, name) for name in _NAMES]
            rows.write(json.dumps([row, len(outcome.gaps_s)]) + "\n")
            gaps.write(outcome.gaps_s.tobytes())


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main(given: str) -> None:
    allow_open_files()
    options = json.loads(given)
    endpoint, silence_s = Endpoint(**options["endpoint"]), options["silence_s"]
    for line in sys.stdin:
        order = json.loads(line)
        place = Path(order["play"])
        rows = json.loads((place / ROWS).read_text(encoding="utf-8"))
        gc.collect()
        gc.disable()
        with asyncio.Runner(loop_factory=fine_loop) as runner:
            outcomes = runner.run(_play(endpoint, silence_s, order, rows))
        _write(place, outcomes)
        gc.enable()
        _say({"done": True, "ended": len(outcomes)})


if __name__ == "__main__":
    main(*sys.argv[1:])
