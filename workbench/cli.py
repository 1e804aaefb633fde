"""The ``workbench`` command. Each command is a few lines over the library.

Exit codes: 0 done, 2 the pilot or the command line is wrong, 3 a stage failed, 4 a gate
that must hold failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from workbench import __version__
from workbench.errors import WorkbenchError
from workbench.model.presets import PRESETS
from workbench.paths import runs_root
from workbench.pilot.sections.base import MOST_BATCH_WAIT_MS, MOST_SLOTS, MOST_WAITING
from workbench.roadmap import STAGES

INTERRUPTED = 130
Number = TypeVar("Number", int, float)
STAGE_NAMES = ", ".join(STAGES)
DECISION_COLOURS = {"go": "green", "no go": "red", "inconclusive": "yellow"}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

bench = typer.Typer(no_args_is_help=True, help="Measure the kernels on this machine.")
app.add_typer(bench, name="bench")


def _stages(typed: str) -> list[str]:
    """Completions of a stage's name."""
    return [name for name in STAGES if name.startswith(typed)]


def _runs(typed: str) -> list[str]:
    """Completions of a run's name; from the folders alone, since a shell waits for them."""
    names = sorted("/".join(path.parts[-3:-1]) for path in runs_root().glob("*/*/run.json"))
    return [name for name in names if name.startswith(typed)]


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
OutFile = Annotated[
    Path | None, typer.Option(help="file that takes the lines as well", show_default="none")
]


@app.command()
def run(
    pilot: PilotFile,
    overrides: Overrides = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help=f"run this stage alone: {STAGE_NAMES}",
            show_default="all stages",
            autocompletion=_stages,
        ),
    ] = None,
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="start at this stage",
            show_default="the first",
            autocompletion=_stages,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="compute again what is finished")] = False,
    notebooks: Annotated[
        bool | None,
        typer.Option(help="execute the notebooks", show_default="if papermill is here"),
    ] = None,
) -> None:
    """Run a pilot, or go on with it; the last line printed is the report's path."""
    from workbench.pilot.resolve import resolve
    from workbench.runner.pilot_run import page_of, raise_failed_gates, run_pilot, selected_stages

    resolved = resolve(pilot, overrides or ())
    done, again = run_pilot(
        resolved, stages=selected_stages(only, first), force=force, notebooks=notebooks
    )
    page = page_of(done, again)
    print(page if page.exists() else done.folder)
    raise_failed_gates(done, again)


@app.command()
def show(pilot: PilotFile, overrides: Overrides = None) -> None:
    """Print every resolved value and where it came from; refuse what `run` would refuse."""
    from workbench.pilot.resolve import resolve
    from workbench.pilot.yaml_file import dump_scalar
    from workbench.runner.checks import check_pilot

    resolved = resolve(pilot, overrides or ())
    leaves = [(name, dump_scalar(value), source) for name, value, source in resolved.leaves()]
    name_width = max(len(name) for name, _, _ in leaves)
    value_width = min(40, max(len(value) for _, value, _ in leaves))
    for name, value, source in leaves:
        print(f"{name:{name_width}}  {value:{value_width}}  {source}")
    sys.stdout.flush()  # a problem, said on standard error, comes after the values
    check_pilot(resolved)


@app.command()
def stage(
    name: Annotated[
        str,
        typer.Argument(
            metavar="STAGE",
            help=f"{STAGE_NAMES}; or its number, or its notebook's name",
            autocompletion=_stages,
        ),
    ],
    pilot: PilotFile,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="compute again though finished")] = False,
) -> None:
    """Run one stage without any notebook (no Jupyter, papermill or Plotly needed)."""
    from workbench.pilot.resolve import resolve
    from workbench.roadmap import stage_named
    from workbench.runner.pilot_run import run_stage

    wanted = stage_named(name)
    record = run_stage(wanted.name, resolve(pilot, overrides or ()), force=force)
    for note in record.notes:
        print(f"note: {note}", file=sys.stderr)
    print(record.folder)


def _in_its_colour(state: str) -> str:
    decision = state.split(",")[0].strip()
    return typer.style(state, fg=DECISION_COLOURS.get(decision))


@app.command()
def runs() -> None:
    """List the runs, the oldest first: date, duration, stages finished or verdict, question."""
    from workbench.records.run import all_runs
    from workbench.records.run_list import run_lines

    for line in run_lines(all_runs(), _in_its_colour):
        typer.echo(line)


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN...", help="two or more runs", autocompletion=_runs),
    ],
) -> None:
    """Print two or more runs side by side: what differs, and every shared figure."""
    from workbench.errors import ConfigError
    from workbench.records.run import find_run
    from workbench.report.compare import compare_text

    if len(names) < 2:
        raise ConfigError(f"compare: got {len(names)} run", allowed="two or more")
    print(compare_text([find_run(name) for name in names]))


@app.command()
def report(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN", help="a run of workbench runs", autocompletion=_runs),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="judge by this, e.g. report.language=ru",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Write report.html of a run again from its records, and print its path.

    With --set report.* the run is judged again beside its first judgement, which stays.
    """
    from workbench.runner.report_again import report_again

    print(report_again(name, overrides or ()))


@app.command()
def notebook(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN", help="a run of workbench runs", autocompletion=_runs),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="the page", show_default="notebooks.html in the run's folder"),
    ] = None,
) -> None:
    """Write a run's executed notebooks as one HTML page that opens offline, and print its path."""
    from workbench.records.run import find_run
    from workbench.report.notebook_html import export_run

    print(export_run(find_run(name), out))


@app.command()
def serve(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|MODEL...", help="a run, or model folders", autocompletion=_runs
        ),
    ],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    slots: Annotated[
        int, typer.Option(min=1, max=MOST_SLOTS, help="requests decoded together in each arm")
    ] = 4,
    queue: Annotated[
        int, typer.Option(min=0, max=MOST_WAITING, help="requests that may wait")
    ] = 256,
    batch_wait_ms: Annotated[
        float,
        typer.Option(
            min=0, max=MOST_BATCH_WAIT_MS, help="a request may wait so long for others, ms"
        ),
    ] = 0.0,
    threads: Annotated[int, typer.Option(min=0, help="0: all usable cores")] = 0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="what computes")] = "cpu",
    route: Annotated[
        str | None,
        typer.Option(help="the arm that answers", show_default="as it was left, or the hybrid"),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="its share of the requests", show_default="1"),
    ] = None,
) -> None:
    """Serve full precision and the hybrid behind one OpenAI-compatible address."""
    from workbench.serve.main import serve_run

    serve_run(
        folders,
        host,
        port,
        slots=slots,
        queue=queue,
        batch_wait_ms=batch_wait_ms,
        threads=threads,
        device=device,
        route=route,
        weight=weight,
    )


@app.command("route")
def change_route(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN", help="a run that is or was served", autocompletion=_runs),
    ],
    to: Annotated[
        str | None, typer.Option(help="the arm that shall answer", show_default="only show it")
    ] = None,
    weight: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="its share of the requests")
    ] = 1.0,
    back: Annotated[bool, typer.Option("--back", help="to full precision, at once")] = False,
    force: Annotated[bool, typer.Option("--force", help="in spite of the hold")] = False,
) -> None:
    """Show or change which arm of a served run answers; what has started is not disturbed."""
    from workbench.errors import ConfigError
    from workbench.records.run import find_run
    from workbench.serve.kept_route import change_route

    if back and to:
        raise ConfigError(f"--back and --to {to}", allowed="one of them")
    print(change_route(find_run(name), to, weight, back=back, force=force))


@app.command()
def tune(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN", help="a run of workbench runs", autocompletion=_runs),
    ],
    budget: Annotated[
        float, typer.Option(min=1, help="seconds of load, all searches together")
    ] = 600.0,
    slots: Annotated[str, typer.Option(help="batch limits to try, with commas")] = "2,8",
    batch_wait_ms: Annotated[
        str, typer.Option(help="waiting times to try with each, ms, with commas")
    ] = "0,20",
    output_tokens: Annotated[
        str, typer.Option(help="tuned before the load's own requests, with commas")
    ] = "1,512",
) -> None:
    """Find the largest rate within the targets for each setting of the queue; say which is best.

    Started again, it goes on with the points that it has.
    """
    from workbench.runner.tune_run import tune_run

    tune_run(
        name,
        budget,
        _numbers("--slots", slots, int),
        _numbers("--batch-wait-ms", batch_wait_ms, float),
        _numbers("--output-tokens", output_tokens, int),
    )


def _numbers(option: str, text: str, of: type[Number]) -> list[Number]:
    try:
        return [of(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r}; give numbers with commas") from None


@app.command()
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


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|MODEL", help="a run, or a model folder", autocompletion=_runs),
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


@app.command()
def study(
    name: Annotated[str, typer.Argument(metavar="recipe|parity|size", help="which study")],
    pilot: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PILOT.yaml]", help="a pilot file", show_default="workbench:study_NAME"
        ),
    ] = None,
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(help="trainings at a time; 0: one a core")] = 0,
    out: OutFile = None,
) -> None:
    """Train the arms of a study that are not trained yet; print its figures as JSON lines."""
    from workbench.study.command import study_command

    study_command(name, pilot, overrides or (), jobs=jobs, out=out)


@bench.command("cpu")
def bench_cpu(
    shape: Annotated[
        Literal["llama-3.2-3b", "bitnet-2b4t", "tiny"], typer.Option(help="of the network")
    ] = "llama-3.2-3b",
    threads: Annotated[int, typer.Option(help="threads of every engine")] = 2,
    peers: Annotated[bool, typer.Option("--peers", help="llama.cpp beside it")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="these alone, with commas: prompts (tiles beside vectors and torch), int8, TQ1_0, "
            "Q4_0, Q8_0, ternary5",
            show_default="all",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Decode and prefill of the native kernels, with the roofline beside every row."""
    from workbench.bench.cpu import bench_cpu

    bench_cpu(shape, threads, peers=peers, only=only, as_json=as_json)


@bench.command("train")
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


@bench.command("trace")
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


@bench.command("client")
def bench_client(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a model folder with tokenizer")],
    aiperf: Annotated[
        Path | None,
        typer.Option(help="executable of aiperf, installed apart", show_default="ours alone"),
    ] = None,
    rate: Annotated[float, typer.Option(help="requests a second")] = 4.0,
    requests: Annotated[int, typer.Option(help="requests of a round")] = 32,
    output_tokens: Annotated[int, typer.Option(help="tokens of an answer")] = 32,
    rounds: Annotated[int, typer.Option(help="rounds of each client, in turns")] = 6,
    threads: Annotated[int, typer.Option(help="threads of the server, 0: all cores")] = 0,
    out: OutFile = None,
) -> None:
    """The load client's times to first token and between tokens, beside aiperf's on one server."""
    from workbench.bench.client import bench_client

    bench_client(
        model,
        aiperf,
        rate_per_s=rate,
        requests=requests,
        output_tokens=output_tokens,
        rounds=rounds,
        threads=threads,
        out=out,
    )


@bench.command("gpu")
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


if __name__ == "__main__":
    main()
