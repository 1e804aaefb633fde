"""Commands on pilots and their runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from workbench.cli.options import (
    STAGE_NAMES,
    OutFile,
    Overrides,
    PilotFile,
    RayAddress,
    RunName,
    StoreUrl,
    runs_named,
    stages_named,
    use_store,
)

if TYPE_CHECKING:
    from workbench.records.run import Run
    from workbench.records.stage_record import StageRecord

commands = typer.Typer()
AsHtml = Annotated[bool, typer.Option("--html", help="write a page instead")]
PageLanguage = Annotated[Literal["en", "ru"], typer.Option(help="of the page")]
PageFile = Annotated[
    Path | None, typer.Option(help="the page", show_default="in the folder of the runs")
]

DECISION_COLOURS = {"go": "green", "no go": "red", "inconclusive": "yellow"}


@commands.command()
def run(
    pilot: PilotFile,
    overrides: Overrides = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help=f"run this stage alone: {STAGE_NAMES}",
            show_default="all stages",
            autocompletion=stages_named,
        ),
    ] = None,
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="start at this stage",
            show_default="the first",
            autocompletion=stages_named,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="compute again what is finished")] = False,
    notebooks: Annotated[
        bool | None,
        typer.Option(help="execute the notebooks", show_default="if papermill is here"),
    ] = None,
    store: StoreUrl = None,
) -> None:
    """Run a pilot, or go on with it; the last line printed is the report's path."""
    from workbench.pilot.resolve import resolve
    from workbench.runner.pilot_run import page_of, raise_failed_gates, run_pilot, selected_stages
    from workbench.train.nodes import all_nodes

    use_store(store)
    resolved = resolve(pilot, overrides or ())
    stages = selected_stages(only, first)
    with all_nodes(resolved.pilot.train.launch) as leads:
        if not leads:
            return
        done, again = run_pilot(resolved, stages=stages, force=force, notebooks=notebooks)
    page = page_of(done, again)
    _say_card(done, resolved.pilot.report.language, again)
    print(page if page.exists() else done.folder)
    raise_failed_gates(done, again)


def _say_card(done: Run, language: str, again: StageRecord | None) -> None:
    """The verdict card on standard error: standard output is the report's path alone."""
    from workbench.report.card import card_lines, verdict_card
    from workbench.wording.text import Texts

    texts = Texts(language)
    print("\n".join(card_lines(verdict_card(done, texts, again), texts)), file=sys.stderr)


@commands.command()
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


@commands.command()
def stage(
    name: Annotated[
        str,
        typer.Argument(
            metavar="STAGE",
            help=f"{STAGE_NAMES}; or its number, or its notebook's name",
            autocompletion=stages_named,
        ),
    ],
    pilot: PilotFile,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="compute again though finished")] = False,
    store: StoreUrl = None,
) -> None:
    """Run one stage without any notebook (no Jupyter, papermill or Plotly needed)."""
    from workbench.pilot.resolve import resolve
    from workbench.roadmap import stage_named
    from workbench.runner.pilot_run import run_stage
    from workbench.train.nodes import all_nodes

    use_store(store)
    wanted, resolved = stage_named(name), resolve(pilot, overrides or ())
    with all_nodes(resolved.pilot.train.launch) as leads:
        if not leads:
            return
        record = run_stage(wanted.name, resolved, force=force)
    for note in record.notes:
        print(f"note: {note}", file=sys.stderr)
    print(record.folder)


@commands.command()
def watch(name: RunName) -> None:
    """Follow a run that another process is at work on, from its beginning until it ends.

    Ends as the run did, with its exit code; a finished one shows what happened, and its verdict.
    """
    from workbench.records.run import find_run
    from workbench.runner.pilot_run import page_of
    from workbench.runner.watch_run import watch_run

    run = find_run(name)
    try:
        watch_run(run)
    finally:
        if run.record("report"):
            again = next(iter(run.judgements()[::-1]), None)
            _say_card(run, run.asked().pilot.report.language, again)
            page = page_of(run, again)
            print(page if page.exists() else run.folder)


def _in_its_colour(state: str) -> str:
    decision = state.split(",")[0].strip()
    return typer.style(state, fg=DECISION_COLOURS.get(decision))


@commands.command()
def runs(
    as_html: AsHtml = False,
    language: PageLanguage = "en",
    out: PageFile = None,
    store: StoreUrl = None,
) -> None:
    """List the runs, the oldest first: date, duration, stages finished or verdict, question.

    With --html they are a page that opens offline, the newest first, with a search field; its path
    is printed.
    """
    from workbench.records.terminal import said_when_slow

    use_store(store)
    with said_when_slow("reading the runs"):
        from workbench.records.run import all_runs
        from workbench.records.run_list import run_lines

        if as_html:
            from workbench.figures.list_page import runs_page

            _write_page(runs_page(all_runs(), language), out, "runs.html")
            return
        lines = list(run_lines(all_runs(), _in_its_colour))
    for line in lines:
        typer.echo(line)


@commands.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="two or more runs; sweep:NAME stands for all of a sweep",
            autocompletion=runs_named,
        ),
    ],
    as_html: AsHtml = False,
    language: PageLanguage = "en",
    out: PageFile = None,
    store: StoreUrl = None,
) -> None:
    """Print two or more runs side by side: what differs, and every shared figure.

    With --html they are a page that opens offline: verdicts, gates and headlines first, then the
    figures, those that differ on top, with a search field; its path is printed.
    """
    from workbench.errors import ConfigError
    from workbench.records.terminal import said_when_slow

    use_store(store)
    with said_when_slow("reading the runs and holding them against each other"):
        from workbench.records.sweep import find_runs
        from workbench.report.compare import compare_text

        found = find_runs(names)
        if len(found) < 2:
            raise ConfigError(f"compare: got {len(found)} run", allowed="two or more")
        if as_html:
            from workbench.figures.list_page import compare_page

            _write_page(compare_page(found, language), out, "compare.html")
            return
        text = compare_text(found)
    print(text)


@commands.command()
def fetch(name: RunName, store: StoreUrl = None) -> None:
    """Bring a run of the store here with its models, and print its folder.

    To be listed, compared and reported a run need not be fetched; to be served or exported it is.
    """
    from workbench.records.run import fetch_run

    use_store(store)
    print(fetch_run(name).folder)


def _write_page(page: str, out: Path | None, name: str) -> None:
    from workbench.files import write_text
    from workbench.paths import runs_root

    target = out or runs_root() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)
    print(target)


@commands.command()
def report(
    name: RunName,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="judge by this, e.g. report.language=ru",
            show_default="as it was last asked",
        ),
    ] = None,
    afresh: Annotated[
        bool, typer.Option("--afresh", help="by the pilot of the run, not as it was last asked")
    ] = False,
) -> None:
    """Write report.html of a run again from its records, and print its path.

    With --set report.* the run is judged again beside its first judgement, which stays; what was
    set before stays set.
    """
    from workbench.records.terminal import said_when_slow

    with said_when_slow(f"judging and drawing {name} from its records"):
        from workbench.runner.report_again import report_again

        page = report_again(name, overrides or (), afresh=afresh)
    print(page)


@commands.command()
def notebook(
    name: RunName,
    out: Annotated[
        Path | None,
        typer.Option(help="the page", show_default="notebooks.html in the run's folder"),
    ] = None,
) -> None:
    """Write a run's executed notebooks as one HTML page that opens offline, and print its path."""
    from workbench.records.run import find_run
    from workbench.report.notebook_html import export_run

    print(export_run(find_run(name), out))


@commands.command()
def study(
    name: Annotated[
        str, typer.Argument(metavar="recipe|parity|size|checkpoint", help="which study")
    ],
    pilot: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PILOT.yaml]", help="a pilot file", show_default="workbench:study_NAME"
        ),
    ] = None,
    overrides: Overrides = None,
    jobs: Annotated[
        int, typer.Option(help="trainings at a time on each device; 0: one a GPU, or one a core")
    ] = 0,
    on: Annotated[
        Literal["here", "ray"], typer.Option(help="this machine, or tasks of Ray")
    ] = "here",
    ray_address: RayAddress = None,
    out: OutFile = None,
) -> None:
    """Train the arms of a study that are not trained yet; print its figures as JSON lines.

    Each is a process of its own; one that fails is tried once more.
    """
    from workbench.study.command import study_command

    study_command(name, pilot, overrides or (), jobs=jobs, on=on, ray_address=ray_address, out=out)
