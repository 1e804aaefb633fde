"""The ``workbench`` command. Each command is a few lines over the library.

Exit codes: 0 done, 2 the pilot or the command line is wrong, 3 a stage failed, 4 a gate
that must hold failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from workbench import __version__
from workbench.cli import bench, cores, meter, models, new, pilots, serving, sweeps
from workbench.errors import WorkbenchError

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (new, pilots, sweeps, serving, models):
    app.add_typer(group.commands)
app.add_typer(meter.commands, name="meter")
app.add_typer(bench.commands, name="bench")
app.add_typer(cores.commands, name="core")


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"workbench {__version__}")
        raise typer.Exit


@app.callback()
def workbench(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="print the version and end"
        ),
    ] = False,
) -> None:
    """Pilots that tell whether ternary language models pay off here."""


def main() -> None:
    """Entry point: errors with a cure are printed without a traceback."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into it, without a word
            raise KeyboardInterrupt
        sys.exit(code)
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("workbench: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        show_usage = getattr(error, "show", None)  # what click raises for a wrong command line
        if show_usage is None:
            raise
        show_usage()
        sys.exit(2)
