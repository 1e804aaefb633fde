"""``workbench drill``: the way back of a finished run's models, taken in every way.

What stage ``deploy_rollback`` does after its replay, for as long as is asked, and without touching
its records.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from workbench.errors import ConfigError, GateError, StageError
from workbench.json_lines import as_line
from workbench.load.piece import LengthLimits
from workbench.load.profile import LoadProfile
from workbench.machine.device import choose_device
from workbench.machine.provenance import provenance
from workbench.pilot.spec import Pilot
from workbench.records.run import Run, find_run
from workbench.records.stage_record import StageRecord
from workbench.serve.carries import measured_capacity
from workbench.serve.client import load_processes
from workbench.serve.drill import WAYS, Taken, Way
from workbench.serve.endpoint import Endpoint
from workbench.serve.load import Load
from workbench.serve.process import server_process
from workbench.stages.deploy_rollback_drill import drill_of, pace, served_spec

STAGES = ("profile_load", "train_qat", "hybrid_plan")
CAPACITY_S = 2.0
"""For the measurement of what each arm can take."""


def drill_run(name: str, ways: Sequence[str], way_s: float, out: Path | None) -> None:
    """Take the ways back, and print what each cost.

    ways: of :data:`WAYS`; none means all. out: a file that takes the rows as JSON lines as well.
    Raises ConfigError for another way, StageError for a run without its models, and GateError
    where a way cost more than it may.
    """
    if wrong := [way for way in ways if way not in WAYS]:
        raise ConfigError(f"drill: {', '.join(wrong)}", allowed=", ".join(WAYS))
    chosen: list[Way] = [way for way in WAYS if not ways or way in ways]
    run = find_run(name)
    records, pilot = _records(run), run.resolved().pilot
    drill = pilot.deploy_rollback.drill.model_copy(update={"way_s": way_s})
    section = pilot.deploy_rollback.model_copy(update={"drill": drill})
    pilot = pilot.model_copy(update={"deploy_rollback": section})
    folder = run.folder / "drill"
    folder.mkdir(exist_ok=True)
    with run.lock("drill"):
        taken = _taken(pilot, records, chosen, folder)
    print(_table(taken))
    rows = [_row(each, run, way_s) for each in taken]
    for path in filter(None, (folder / "drill.jsonl", out)):
        with path.open("a", encoding="utf-8") as file:
            file.writelines(as_line(row) for row in rows)
    if dear := [each.way for each in taken if each.holds is False]:
        raise GateError(
            f"the way back {', '.join(dear)} lost requests or cut streams that it may not",
            allowed="no request without a token lost; no stream cut by command or monitor",
            next_step="read server.log in the run's folder drill",
        )


def _taken(
    pilot: Pilot, records: Mapping[str, StageRecord], ways: Sequence[Way], folder: Path
) -> list[Taken]:
    section = pilot.deploy_rollback
    spec = served_spec(pilot, records, choose_device(pilot.readiness.device).name, faults=True)
    _say("starting the server with both arms")
    with server_process(spec, folder) as server:
        limits = LengthLimits(
            section.max_prompt_tokens, section.max_output_tokens, server.ready.context
        )
        profile = LoadProfile.from_record(records["profile_load"])
        load = Load.of(profile, limits, records["train_qat"], pilot.seed)
        with load_processes(Endpoint(server.address), folder, check=server.check) as client:
            capacity = {
                arm: measured_capacity(client, load, arm, section.slots, section.queue, CAPACITY_S)
                for arm in server.ready.arms
            }
            speedup = pace(section, load, capacity)
            drill = drill_of(pilot, server, client, load, speedup, ways, folder)
            return drill.run(ways, float("inf"), lambda way: _say(way))


def _records(run: Run) -> dict[str, StageRecord]:
    found = {stage: run.record(stage) for stage in STAGES}
    if absent := [stage for stage, record in found.items() if record is None]:
        raise StageError(
            f"{run.name} has no finished {', '.join(absent)}",
            allowed="a run whose load is profiled and whose models are trained and planned",
            next_step="finish that run with workbench run; workbench runs lists the runs",
        )
    return {stage: record for stage, record in found.items() if record}


def _row(taken: Taken, run: Run, way_s: float) -> dict[str, object]:
    return {
        "name": "drill",
        **taken.to_json(),
        "way_s": way_s,
        "run": run.name,
        **provenance(),
    }


def _table(taken: Sequence[Taken]) -> str:
    """For a terminal."""
    rows = [
        {
            "way": each.way,
            "requests": each.requests,
            "lost": each.failed_without_token,
            "cut": each.truncated,
            "first token, s": _number(each.first_fallback_token_s, 3),
            "p99, ms": _number(each.p99_ms, 0),
            "back, s": _number(each.back_s, 1),
            "MB": _number(each.memory_mb, 0),
            "grown, MB": _number(each.memory_growth_mb, 0),
            "the server said": each.skipped or each.reason[:60],
        }
        for each in taken
    ]
    return pd.DataFrame(rows).to_string(index=False)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _say(text: str) -> None:
    print(f"drill: {text}", file=sys.stderr)
