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
            metavar="MODEL",
            help="a packed, master or Hugging Face BitNet folder, or a .gguf or .onnx file",
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
        Path,
        typer.Argument(
            metavar="OUT", help="a file.gguf or file.onnx, or a folder for Hugging Face"
        ),
    ],
    arm: Annotated[
        Literal[
            "hybrid", "ternary", "post_training", "int8", "int4", "full_precision", "checkpoint"
        ]
        | None,
        typer.Option(help="which of a run's models", show_default="hybrid"),
    ] = None,
    kind: Annotated[
        Literal["tq2_0", "tq1_0", "q2_0", "q4_0", "i2_s"] | None,
        typer.Option(
            "--type",
            help="of ternary layers in a GGUF file; i2_s is for bitnet.cpp alone",
            show_default="tq2_0",
        ),
    ] = None,
    bits: Annotated[
        Literal["2", "4", "8"] | None,
        typer.Option(help="of ternary layers in an ONNX file", show_default="2"),
    ] = None,
    rest_bits: Annotated[
        Literal["4", "8"] | None,
        typer.Option(
            help="round an ONNX file's layers in high precision to so many bits",
            show_default="as they are",
        ),
    ] = None,
    tokenizer: Annotated[bool, typer.Option(help="write the tokenizer too")] = True,
) -> None:
    """Write a run's model for other tools: GGUF (llama.cpp, bitnet.cpp), ONNX (onnxruntime) or
    Hugging Face's BitNet format."""
    from workbench.export.command import export_command

    of_bits: dict[str | None, Literal[2, 4, 8]] = {"2": 2, "4": 4, "8": 8}
    export_command(
        source,
        out,
        arm=arm,
        kind=kind,
        tokenizer=tokenizer,
        bits=of_bits.get(bits),
        rest_bits=of_bits.get(rest_bits),
    )
