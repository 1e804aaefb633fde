"""`workbench core`: which cores compute here, and whether one does it right."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from workbench.model.presets import PRESETS

commands = typer.Typer(no_args_is_help=True, help="What computes the models: list, check.")


@commands.command("list")
def list_cores(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """The cores that readiness.core may name, and the packages that bring them."""
    from workbench.engine.cores import known_cores, package_of

    for name, point in known_cores().items():
        found = {"name": name, "package": package_of(point), "builds": point.value}
        if as_json:
            print(json.dumps(found))
        else:
            print(f"{name:20} {found['package']:28} {point.value}")


@commands.command("check")
def check_core(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of workbench core list")],
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="what it computes on")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="0: all physical cores")] = 0,
    near: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.05,
            help="how far logits may be from the reference's, as a share; 0.01 for a core of the "
            "same roundings",
        ),
    ] = 0.05,
    bench: Annotated[
        bool, typer.Option("--bench/--no-bench", help="time it beside ours afterwards")
    ] = True,
    shape: Annotated[
        str, typer.Option(help="of what is timed, e.g. bitnet-3b", metavar="PRESET")
    ] = "small-25m",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Hold a core against the plain reference: logits, batches, slots, errors, memory; then time it
    beside ours. Exit code 3 where it fails."""
    from workbench.bench.core import bench_core
    from workbench.check.core import check_core_command
    from workbench.errors import ConfigError
    from workbench.pilot.problems import did_you_mean

    if shape not in PRESETS:
        raise ConfigError(f"--shape {shape}: unknown{did_you_mean(shape, PRESETS)}")
    check_core_command(name, device=device, threads=threads, near=near, as_json=as_json)
    if bench:
        bench_core(name, shape, device=device, threads=threads, as_json=as_json)
