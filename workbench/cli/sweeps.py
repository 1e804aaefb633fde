"""`workbench sweep` and `workbench plan`: many runs of one pilot, and many replicas of an arm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from workbench.cli.options import OutFile, RayAddress, RunName, StoreUrl, use_store

commands = typer.Typer()


@commands.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="SWEEP.yaml", help="a pilot and a grid or a list of values")
    ],
    jobs: Annotated[
        int, typer.Option(help="runs at a time on each device, here; 0: one a GPU, or one a core")
    ] = 1,
    on: Annotated[
        Literal["here", "ray", "slurm"],
        typer.Option(help="this machine, tasks of Ray, or a script for a Slurm array"),
    ] = "here",
    ray_address: RayAddress = None,
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
    store: StoreUrl = None,
) -> None:
    """Run many runs of one pilot, or go on with them; the last line printed is the page that
    compares them.

    A run that fails is tried once more; one that is finished is skipped.
    """
    from workbench.sweep import command

    use_store(store)
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


@commands.command()
def plan(
    name: RunName,
    requests_per_day: Annotated[
        list[float] | None,
        typer.Option(
            metavar="N",
            help="of the whole fleet; may be given again",
            show_default="the pilot's own, 1e6, 1e7, 1e8 and 1e9",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="count by this, e.g. report.cost.assumed_power_w=300",
            show_default="none",
        ),
    ] = None,
    out: OutFile = None,
) -> None:
    """What fleet of each arm carries so many requests a day: replicas, latencies, energy, cost.

    A simulation of the run's own replicas under its own load, held against the run's replay.
    """
    import json

    from workbench.files import write_text
    from workbench.records.run import find_run
    from workbench.runner.plan_run import plan_run

    run = find_run(name)
    own = run.resolved().pilot.report.cost.requests_per_day
    found = plan_run(run, requests_per_day or sorted({own, 1e6, 1e7, 1e8, 1e9}), overrides or ())
    for line in found.lines():
        print(line)
    if out:
        write_text(out, "".join(json.dumps(row.fields()) + "\n" for row in found.rows))
