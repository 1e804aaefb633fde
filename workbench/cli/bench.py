"""`workbench bench`: measure the kernels and tools on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from workbench.cli.options import OutFile
from workbench.model.presets import PRESETS

commands = typer.Typer(no_args_is_help=True, help="Measure the kernels on this machine.")


@commands.command("cpu")
def bench_cpu(
    shape: Annotated[
        Literal["llama-3.2-3b", "bitnet-2b4t", "tiny"], typer.Option(help="of the network")
    ] = "llama-3.2-3b",
    threads: Annotated[int, typer.Option(help="threads of every engine")] = 2,
    peers: Annotated[bool, typer.Option("--peers", help="llama.cpp beside it")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="these alone, with commas: prompts (tiles beside vectors and torch), int4, "
            "int4_tables (embedding and head in INT4 too), int8, "
            "TQ1_0, Q4_0, Q8_0, ternary3, ternary5",
            show_default="all",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Decode and prefill of the native kernels, with the roofline beside every row."""
    from workbench.bench.cpu import bench_cpu

    bench_cpu(shape, threads, peers=peers, only=only, as_json=as_json)


@commands.command("train")
def bench_train(
    preset: Annotated[str, typer.Option(help=f"a shape: {', '.join(PRESETS)}")] = "tiny-2m",
    batch: Annotated[int, typer.Option(help="sequences a step")] = 16,
    sequence: Annotated[int, typer.Option(help="tokens of a sequence")] = 128,
    pairs: Annotated[int, typer.Option(help="blocks of each arm")] = 8,
    steps: Annotated[int, typer.Option(help="optimizer steps of a block")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    out: OutFile = None,
) -> None:
    """Training speed of the ternary arm over the dense one, in one run."""
    from workbench.bench.train import bench_train

    bench_train(
        preset, batch=batch, sequence=sequence, pairs=pairs, steps=steps, as_json=as_json, out=out
    )


@commands.command("sharded")
def bench_sharded(
    preset: Annotated[str, typer.Option(help="small, or a preset, e.g. small-25m")] = "small",
    processes: Annotated[str, typer.Option(help="how many share the model, with commas")] = "2,4",
    steps: Annotated[int, typer.Option(min=5, help="of each training")] = 20,
    batch: Annotated[int, typer.Option(help="sequences a step, of all processes")] = 8,
    sequence: Annotated[int, typer.Option(help="tokens of a sequence")] = 128,
    out: OutFile = None,
) -> None:
    """Shards of a ternary model in training beside the whole one: loss, codes, bytes, speed."""
    from workbench.bench.sharded import bench_sharded
    from workbench.errors import ConfigError

    counts = processes.split(",")
    if not all(each.isdecimal() and int(each) for each in counts):
        raise ConfigError(f"--processes {processes}", allowed="whole numbers with commas: 2,4")
    bench_sharded(
        preset,
        processes=[int(each) for each in counts],
        steps=steps,
        batch=batch,
        sequence=sequence,
        out=out,
    )


@commands.command("replica")
def bench_replica(
    model: Annotated[Path, typer.Argument(help="a model folder with its tokenizer")],
    replicas: Annotated[
        int, typer.Option(min=1, help="servers of one thread each; several behind the router")
    ] = 1,
    blocks: Annotated[int, typer.Option(min=2, help="every other one is foretold")] = 10,
    requests: Annotated[int, typer.Option(min=1, help="of a block")] = 50,
    busy: Annotated[float, typer.Option(help="share of its time that a replica is at work")] = 0.5,
    out: Annotated[
        Path | None, typer.Option(help="file that the rows are added to", show_default="none")
    ] = None,
) -> None:
    """Whether simulated replicas answer as real ones: p50, p90, p99, simulated over measured."""
    from workbench.bench.replica import bench_replica

    bench_replica(model, replicas, blocks=blocks, requests=requests, busy=busy, out=out)


@commands.command("sweep")
def bench_sweep(
    runs: Annotated[int, typer.Option(min=2, help="smoke pilots of the sweep")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="at a time")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="file that the row is added to", show_default="none")
    ] = None,
) -> None:
    """How busy a sweep keeps the cores; a minute or two a pilot, on an otherwise idle machine."""
    from workbench.bench.sweep import bench_sweep

    bench_sweep(runs, jobs, out=out)


@commands.command("trace")
def bench_trace(
    rows: Annotated[int, typer.Option(help="requests of the trace that is made")] = 30_000_000,
    only: Annotated[
        str | None, typer.Option(help="formats, e.g. csv,jsonl.zst", show_default="all")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="where the files lie meanwhile", show_default="a temporary one"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="file that takes the rows as well", show_default="none")
    ] = None,
) -> None:
    """Reading a request trace: rows a second and peak memory, beside a bare PyArrow pass."""
    from workbench.bench.trace import FORMATS, bench_trace

    formats = tuple(only.split(",")) if only else FORMATS
    bench_trace(rows, formats=formats, folder=folder, out=out)


@commands.command("client")
def bench_client(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a model folder with tokenizer")],
    aiperf: Annotated[
        Path | None,
        typer.Option(help="executable of aiperf, installed apart", show_default="ours alone"),
    ] = None,
    guidellm: Annotated[
        Path | None,
        typer.Option(help="executable of guidellm, installed apart", show_default="ours alone"),
    ] = None,
    rate: Annotated[float, typer.Option(help="requests a second")] = 4.0,
    requests: Annotated[int, typer.Option(help="requests of a round")] = 32,
    output_tokens: Annotated[int, typer.Option(help="tokens of an answer")] = 32,
    rounds: Annotated[int, typer.Option(help="rounds of each client, in turns")] = 6,
    threads: Annotated[int, typer.Option(help="threads of the server, 0: all cores")] = 0,
    out: OutFile = None,
) -> None:
    """The load client's times and throughput beside aiperf's and guidellm's, on one server."""
    from workbench.bench.client import bench_client

    bench_client(
        model,
        aiperf,
        guidellm,
        rate_per_s=rate,
        requests=requests,
        output_tokens=output_tokens,
        rounds=rounds,
        threads=threads,
        out=out,
    )


@commands.command("gpu")
def bench_gpu(
    rehearse: Annotated[bool, typer.Option("--rehearse", help="tiny, without a GPU")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="parts, with commas: product, engine, training, capacity, large, between, "
            "weights, qat_layer",
            show_default="all",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="file that takes the rows", show_default="bench-DEVICE-DATE.jsonl"),
    ] = None,
) -> None:
    """The Triton kernels and the engine on them against bf16, as JSON lines."""
    from workbench.bench.gpu import bench_gpu

    bench_gpu(rehearse=rehearse, only=only, out=out)
