"""``workbench study``: one study on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from workbench.errors import ConfigError
from workbench.paths import SHIPPED
from workbench.pilot.problems import did_you_mean
from workbench.pilot.resolve import resolve
from workbench.records.run import open_run
from workbench.records.terminal import watching
from workbench.runner.pilot_run import terminable
from workbench.study.lines import json_lines, write_lines
from workbench.study.run import STUDIES, run_study


def study_command(
    name: str,
    pilot: Path | None,
    overrides: Sequence[str],
    *,
    jobs: int = 0,
    on: Literal["here", "ray"] = "here",
    ray_address: str | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Run study ``name`` or go on with it, and say its lines.

    pilot: None takes the shipped ``study_<name>``. jobs, on, ray_address: as of :func:`run_study`.
    """
    if name not in STUDIES:
        raise ConfigError(f"study {name}: unknown{did_you_mean(name, STUDIES)}")
    resolved = resolve(pilot or f"{SHIPPED}study_{name}", overrides)
    with terminable(), watching(open_run(resolved).events):
        record = run_study(name, resolved, jobs=jobs, on=on, ray_address=ray_address)
    for line in json_lines(record):
        say(line)
    if out:
        write_lines(out, record)
