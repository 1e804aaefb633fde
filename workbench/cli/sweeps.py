"""`workbench sweep`: many runs of one pilot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

commands = typer.Typer()


@commands.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="SWEEP.yaml", help="a pilot and a grid or a list of values")
    ],
    jobs: Annotated[int, typer.Option(help="runs at a time on each device, here")] = 1,
    on: Annotated[
        Literal["here", "ray", "slurm"],
        typer.Option(help="this machine, tasks of Ray, or a script for a Slurm array"),
    ] = "here",
    ray_address: Annotated[
        str | None,
        typer.Option(help="of a Ray cluster", show_default="$RAY_ADDRESS, or a local cluster"),
    ] = None,
    notebooks: Annotated[
        bool | None,
        typer.Option(help="execute the notebooks", show_default="if papermill is here"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the runs and forecast their time, start none")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="compare what is finished, start nothing")
    ] = False,
) -> None:
    """Run many runs of one pilot, or go on with them; the last line printed is the page that
    compares them.

    A run that fails is tried once more; one that is finished is skipped.
    """
    from workbench.sweep import command

    if dry_run:
        print("\n".join(command.dry_run(file, jobs)))
        return
    if compare:
        page = command.compare_sweep(command.keep(command.read_sweep(file)))
    else:
        page = command.run_sweep(
            file, jobs=jobs, on=on, ray_address=ray_address, notebooks=notebooks
        )
    if page:
        print(page)
