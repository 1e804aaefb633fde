"""`workbench meter`: which power meters answer here, live, recorded, and imported afterwards."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from workbench.cli.options import runs_named
from workbench.pilot.sections.meters import Meters

commands = typer.Typer(no_args_is_help=True, help="Power meters: find, watch, record, import.")

MeterPilot = Annotated[
    Path | None,
    typer.Option(
        "--pilot",
        metavar="PILOT.yaml",
        help="also the meters that this pilot declares",
        show_default="those of this machine",
    ),
]

ForTime = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="TIME", help="90s, 10m, 2h or 7d", show_default="until interrupted"
    ),
]
SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _declared(pilot: Path | None) -> Meters:
    from workbench.pilot.resolve import resolve

    return resolve(pilot).pilot.measure_ab.meters if pilot else Meters()


def _seconds(text: str | None) -> float | None:
    """Raises BadParameter for what is no time."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not found or not float(found[1]):
        raise typer.BadParameter(f"--for: {text!r}; give a time such as 90s, 10m, 2h or 7d")
    return float(found[1]) * SECONDS[found[2]]


@commands.command("list")
def list_meters(
    pilot: MeterPilot = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """What can be read here, each channel with what it declares, and why the rest cannot."""
    from rich.console import Console

    from workbench.measure.meters.find import find_meters
    from workbench.measure.meters.watch import Watch, channel_fields, listing

    watch = Watch(*find_meters(_declared(pilot), gpus=None))
    watch.look()
    watch.close()
    if as_json:
        for channel in watch.channels:
            print(json.dumps(channel_fields(channel)))
        for reader, why in watch.without_channels():
            print(json.dumps({"reader": reader, "missing": why}))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    if watch.channels:
        console.print(listing(watch))
    for reader, why in watch.without_channels():
        console.print(f"{reader}: {why}", highlight=False, markup=False, soft_wrap=True)
    for meter in watch.meters:
        for note in meter.notes:
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


@commands.command()
def watch(
    pilot: MeterPilot = None,
    every: Annotated[float, typer.Option(min=0.05, help="between two readings, s")] = 0.5,
    for_: ForTime = None,
) -> None:
    """Every channel live: value, power, rate, age and faults."""
    from rich.live import Live

    from workbench.measure.meters.clock import SYSTEM_CLOCK
    from workbench.measure.meters.find import find_meters
    from workbench.measure.meters.watch import Watch

    for_s = _seconds(for_)
    until_s = float("inf") if for_s is None else SYSTEM_CLOCK.monotonic_s() + for_s
    watched = Watch(*find_meters(_declared(pilot), gpus=None))
    try:
        watched.look()
        with Live(watched.live_table(), auto_refresh=False) as live:
            while SYSTEM_CLOCK.monotonic_s() < until_s:
                SYSTEM_CLOCK.sleep(every)
                watched.read()
                live.update(watched.live_table(), refresh=True)
    finally:
        watched.close()


@commands.command()
def record(
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="the recording")],
    pilot: MeterPilot = None,
    every: Annotated[float, typer.Option(min=0.05, help="between two readings, s")] = 1.0,
    for_: ForTime = None,
) -> None:
    """Log every meter for days; killed at any moment, the same command goes on with the file.

    Readable while it grows and after a kill: `meter import` and `measure_ab.meters` take it.
    """
    from workbench.runner.record_meters import record_meters

    record_meters(_declared(pilot), out, every, _seconds(for_))


@commands.command("import")
def import_export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the export, or a recording")],
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="the finished run whose energy is computed from it; without one the file is only "
            "read and said",
            show_default="none",
            autocompletion=runs_named,
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="csv, nvidia-smi, grafana, prometheus, codecarbon, zeus, dcmi or apc; a recording "
            "is known by itself",
        ),
    ] = "csv",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=NAME,...",
            help="the file's own names of timestamp, source, power, energy; several powers are as "
            "many sources",
            show_default="as the format has them",
        ),
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="W, kW, mW, J, Wh, kWh", show_default="as the file says")
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(help="of times without an offset, Europe/Berlin", show_default="none"),
    ] = None,
    scope: Annotated[
        Literal["node", "gpu", "cpu", "rack", "it", "facility", "cooling"] | None,
        typer.Option(
            help="what it covers; node is the machine at its inlet",
            show_default="as the format has it, or node",
        ),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option("--source", help="this source alone; may be given again", show_default="all"),
    ] = None,
    decimal: Annotated[
        Literal[".", ","] | None,
        typer.Option(help="decimal mark", show_default="by the file"),
    ] = None,
    date_order: Annotated[
        Literal["dmy", "mdy"] | None,
        typer.Option(help="of 03/02/2026", show_default="by the file"),
    ] = None,
    lag: Annotated[
        float | None, typer.Option(help="how late it is, s", show_default="from the turns")
    ] = None,
    averaging: Annotated[
        float | None,
        typer.Option(min=0, help="a value is the mean of, s", show_default="from the turns"),
    ] = None,
    max_gap: Annotated[
        float | None,
        typer.Option(min=0.01, help="a longer gap gives no figure, s", show_default="the pilot's"),
    ] = None,
) -> None:
    """Attach a power log that came afterwards to a finished run, and compute its energy.

    The record of before stays; attached again, the earlier log is replaced, and said.
    """
    from workbench.measure.exports.forms import Options
    from workbench.runner.import_log import columns_of, import_log

    options = Options(
        columns_of(columns or []), unit, zone, scope, tuple(sources or ()), decimal, date_order
    )
    import_log(file, form, run, options, lag_s=lag, averaging_s=averaging, max_gap_s=max_gap)
