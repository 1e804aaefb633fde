"""Commands that serve a run: serve, route, drill, tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from workbench.cli.options import OutFile, RunName, runs_named
from workbench.pilot.sections.base import MOST_BATCH_WAIT_MS, MOST_SLOTS, MOST_WAITING

commands = typer.Typer()

Number = TypeVar("Number", int, float)


@commands.command()
def serve(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|MODEL...|NAME=URL...",
            help="a run, or model folders, or OpenAI-compatible servers that run (a name again: a "
            "further replica of it)",
            autocompletion=runs_named,
        ),
    ],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_SLOTS,
            help="requests decoded together in each arm",
            show_default="4, of upstreams 256",
        ),
    ] = None,
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
    core: Annotated[
        str, typer.Option(help="of workbench core list; auto: the kernels of the device")
    ] = "auto",
    tables: Annotated[
        Literal["auto", "half", "int8", "mixed", "int4"] | None,
        typer.Option(
            help="embedding and head in memory beside ternary, INT4 or INT8 layers",
            show_default="the pilot's, or auto",
        ),
    ] = None,
    ternary: Annotated[
        Literal["two_bits", "triples", "base3"] | None,
        typer.Option(help="ternary layers in memory", show_default="the pilot's, or two_bits"),
    ] = None,
    route: Annotated[
        str | None,
        typer.Option(help="the arm that answers", show_default="as it was left, or the hybrid"),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="its share of the requests", show_default="the pilot's, or 1"
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="file that keeps the route over restarts, for workbench route",
            show_default="of a run one in its folder; else none",
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=NUMBER,...",
            help="when to go back, e.g. ttft_s=0.5,max_error_share=0.05",
            show_default="the pilot's",
        ),
    ] = None,
    canary: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE,...",
            help="let the share grow by these steps while the rule has nothing against it",
            show_default="the pilot's, or none",
        ),
    ] = None,
    step_s: Annotated[
        float, typer.Option(min=0.0, help="a step of the canary lasts at least so long, s")
    ] = 300.0,
    step_requests: Annotated[
        int, typer.Option(min=1, help="requests of the candidate's that end in a step, at least")
    ] = 100,
    compared_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="share of the requests of a canary that both arms answer, to be compared",
        ),
    ] = 0.02,
    probes: Annotated[
        Path | None,
        typer.Option(
            help="prompts that both arms of a canary are asked each minute: a text a line, or "
            "JSONL as a pilot's prompts",
            show_default="the pilot's prompts, or held-out texts",
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="an arm speculative more: the first arm's answers, guessed by this model folder "
            "or the text; prompt: by the text alone",
            show_default="none",
        ),
    ] = None,
    sticky_user: Annotated[
        bool,
        typer.Option(
            "--sticky-user",
            help="all requests with the same user go to one arm while the weight stays",
        ),
    ] = False,
    short_slots: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_SLOTS,
            help="slots of each arm besides, for short requests alone; 0: first come, first served",
            show_default="1 for each 4 slots, of upstreams none",
        ),
    ] = None,
    short_tokens: Annotated[
        int, typer.Option(min=1, help="a request that wants more output is a long one")
    ] = 64,
    deadline: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="an answer that is not whole by then is an error, s",
            show_default="the pilot's, or 600",
        ),
    ] = None,
    on_lost_stream: Annotated[
        Literal["end", "continue"] | None,
        typer.Option(
            help="a stream whose arm is lost: an error, or the fallback goes on",
            show_default="the pilot's, or end",
        ),
    ] = None,
    drain_notice: Annotated[
        float,
        typer.Option(min=0.0, max=600.0, help="after SIGTERM, /ready says so for so long first, s"),
    ] = 2.0,
    upstream_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL", help="what an upstream calls its model", show_default="none"
        ),
    ] = None,
    upstream_key_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VARIABLE",
            help="environment variable with an upstream's key",
            show_default="none",
        ),
    ] = None,
    upstream_connect_s: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SECONDS",
            help="an upstream that takes no connection within it is out",
            show_default="5",
        ),
    ] = None,
    upstream_silence_s: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SECONDS",
            help="an upstream's answer has failed that says nothing for so long",
            show_default="300",
        ),
    ] = None,
    upstream_health_s: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SECONDS",
            help="between two looks at an upstream's health, and the longest that one may take",
            show_default="2",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE",
            help="environment variable with the key that clients must send",
            show_default="none",
        ),
    ] = None,
    ssl_certfile: Annotated[
        str | None,
        typer.Option(metavar="PEM", help="answer by HTTPS with it", show_default="none"),
    ] = None,
    ssl_keyfile: Annotated[
        str | None,
        typer.Option(metavar="PEM", help="its key", show_default="in the certificate's file"),
    ] = None,
    max_body: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1024.0,
            help="longest body of a request, MiB",
            show_default="1, more for a long context",
        ),
    ] = None,
    log: Annotated[
        Literal["text", "json"],
        typer.Option(help="json: an object a line, with one for each request"),
    ] = "text",
    meters: Annotated[
        bool, typer.Option(help="count energy for /metrics, where a meter answers")
    ] = True,
) -> None:
    """Serve two arms behind one OpenAI-compatible address: full precision and the hybrid of a run,
    model folders, or servers that run already."""
    from workbench.serve.canary import CanaryPlan
    from workbench.serve.front_options import FrontOptions
    from workbench.serve.served_run import serve_run
    from workbench.serve.upstream_options import UpstreamOptions

    most = None if max_body is None else int(max_body * 2**20)
    front = FrontOptions(ssl_certfile, ssl_keyfile, api_key, most, log)
    upstreams = UpstreamOptions(
        upstream_model or (),
        upstream_key_env or (),
        upstream_connect_s or (),
        upstream_silence_s or (),
        upstream_health_s or (),
    )

    packing = {"tables": tables, "ternary": ternary}
    compared = {"compared_share": compared_share}
    plan = CanaryPlan.parsed(canary, step_s, step_requests, **compared) if canary else None
    serve_run(
        folders,
        slots=slots,
        short_slots=short_slots,
        route=route,
        weight=weight,
        state=state,
        rule=rule,
        canary=plan,
        probes=probes,
        upstream_options=upstreams,
        draft=draft,
        host=host,
        port=port,
        queue=queue,
        batch_wait_s=batch_wait_ms / 1e3,
        threads=threads,
        device=device,
        core=core,
        packing={name: kind for name, kind in packing.items() if kind},
        short_tokens=short_tokens,
        deadline_s=deadline,
        on_lost_stream=on_lost_stream,
        sticky_user=sticky_user,
        drain_notice_s=drain_notice,
        front=front,
        meters=meters,
    )


@commands.command("route")
def change_route(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE",
            help="a run that is or was served, or the file of serve --state",
            autocompletion=runs_named,
        ),
    ],
    to: Annotated[
        str | None, typer.Option(help="the arm that shall answer", show_default="only show it")
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="with --to: its share of the requests", show_default="1"
        ),
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="to the fallback, at once")] = False,
    show: Annotated[bool, typer.Option("--show", help="only show it, as without options")] = False,
    force: Annotated[bool, typer.Option("--force", help="in spite of the hold")] = False,
) -> None:
    """Show or change which arm of a server answers; what has started is not disturbed."""
    from workbench.errors import ConfigError
    from workbench.records.run import find_run
    from workbench.serve.kept_route import change_route

    orders = [f"--to {to}"] * (to is not None) + ["--back"] * back + ["--show"] * show
    if len(orders) > 1:
        raise ConfigError(" and ".join(orders), allowed="one of them")
    if to is None and weight is not None:
        raise ConfigError(f"--weight {weight:g} without an arm", next_step="name it: --to ARM")
    of = Path(name) if Path(name).is_file() else find_run(name)
    print(change_route(of, to, 1.0 if weight is None else weight, back=back, force=force))


@commands.command()
def drill(
    name: RunName,
    way: Annotated[
        list[str] | None,
        typer.Option(
            help="command, monitor, crash, nan, hang, kill or upstream; may be given again",
            show_default="all",
        ),
    ] = None,
    way_s: Annotated[
        float, typer.Option(min=0.5, max=3600, help="seconds of the load for each way")
    ] = 10.0,
    out: OutFile = None,
) -> None:
    """Take the way back in every way while the load is played, and say what each cost."""
    from workbench.runner.drill_run import drill_run

    drill_run(name, way or (), way_s, out)


@commands.command()
def tune(
    name: RunName,
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
