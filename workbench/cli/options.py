"""Arguments, options and completions that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from workbench.paths import expanded, runs_root
from workbench.roadmap import STAGES

STAGE_NAMES = ", ".join(STAGES)


def stages_named(typed: str) -> list[str]:
    """Completions of a stage's name."""
    return [name for name in STAGES if name.startswith(typed)]


def runs_named(typed: str) -> list[str]:
    """Completions of a run's name; from the folders alone, since a shell waits for them."""
    names = sorted("/".join(path.parts[-3:-1]) for path in runs_root().glob("*/*/run.json"))
    return [name for name in names if name.startswith(typed)]


RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="a run of workbench runs", autocompletion=runs_named),
]
PilotFile = Annotated[
    Path,
    typer.Argument(metavar="PILOT.yaml", help="the pilot file, or workbench:NAME of a shipped one"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override a field, e.g. train.lr=3e-4; may be given again",
        show_default="the pilot's own",
    ),
]


def use_store(url: str | None) -> None:
    """Name the store for this command and all that it starts."""
    if url:
        there = url if "://" in url else str(expanded(Path(url), "--store ").resolve())
        os.environ["WORKBENCH_STORE"] = there


StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="runs shared with other machines: s3://bucket/prefix, or a folder",
        show_default="$WORKBENCH_STORE, or none",
    ),
]
OutFile = Annotated[
    Path | None, typer.Option(help="file that takes the lines as well", show_default="none")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="of a Ray cluster", show_default="$RAY_ADDRESS, or a local cluster"),
]
