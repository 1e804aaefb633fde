"""Commands on models: check and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from workbench.cli.options import runs_named

commands = typer.Typer()


@commands.command()
def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="a packed, master or Hugging Face BitNet folder, or a .gguf file"
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Say which matrices of a model are ternary, and prove it on its files; 3 where one is not."""
    from workbench.check.ternary import check_command

    check_command(path, as_json=as_json)


@commands.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|MODEL",
            help="a run, or a model folder",
            autocompletion=runs_named,
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="a file.gguf, or a folder for Hugging Face")
    ],
    arm: Annotated[
        Literal["hybrid", "ternary", "post_training", "int8", "full_precision"] | None,
        typer.Option(help="which of a run's models", show_default="hybrid"),
    ] = None,
    kind: Annotated[
        Literal["tq2_0", "tq1_0", "q2_0", "q4_0"] | None,
        typer.Option("--type", help="of ternary layers in a GGUF file", show_default="tq2_0"),
    ] = None,
    tokenizer: Annotated[bool, typer.Option(help="write the tokenizer too")] = True,
) -> None:
    """Write a run's model for other tools: GGUF (llama.cpp) or Hugging Face's BitNet format."""
    from workbench.export.command import export_command

    export_command(source, out, arm=arm, kind=kind, tokenizer=tokenizer)
