"""``workbench sweep``: from the file to all runs finished, and one comparison of them.

The same command goes on from wherever an earlier one was ended: finished runs are skipped, begun
ones go on. What is kept beside the runs is only which of them belong together.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import GateError, StageError, WorkbenchError
from workbench.figures.list_page import compare_page
from workbench.files import write_text
from workbench.paths import shown
from workbench.records.run import Run
from workbench.records.run_list import run_rows
from workbench.records.sweep import FILE, SWEEP, KeptRun, KeptSweep, is_finished
from workbench.records.terminal import clock
from workbench.runner.checks import check_pilot
from workbench.runner.forecast import Forecast, forecast
from workbench.runner.pilot_run import check_store, terminable
from workbench.runner.stage_times import Speeds
from workbench.sweep.attempts import JobArray, JobEnd
from workbench.sweep.file import Sweep, read_sweep, refused
from workbench.sweep.here import run_here, slots_of
from workbench.sweep.job import GATE
from workbench.sweep.on_ray import resources_of, run_on_ray
from workbench.sweep.slurm import slurm_script, submission, write_script
from workbench.wording.counts import number_of

PAGE = "compare.html"


def say(text: str) -> None:
    """On standard error: standard output is the page's path alone."""
    print(text, file=sys.stderr, flush=True)


def run_sweep(
    path: Path,
    *,
    jobs: int = 1,
    on: str = "here",
    ray_address: str | None = None,
    notebooks: bool | None = None,
) -> Path | None:
    """Run what is not finished of the sweep at ``path``; the page of its comparison.

    None: there are not two finished runs to compare, or ``on`` is ``slurm``, which is given a
    script. Raises ConfigError before anything starts; StageError when runs failed twice, GateError
    when gates that must hold failed, in both cases with the page written.
    """
    sweep = checked(read_sweep(path))
    check_store()
    slots = slots_of([run.resolved.pilot for run in sweep.runs], jobs) if on == "here" else []
    kept = keep(sweep)
    waiting = [one for one in kept.runs if not _done(one)]
    say(
        f"sweep {sweep.name}: {number_of(len(kept.runs), 'run')}, {len(kept.runs) - len(waiting)} "
        "finished"
    )
    array = jobs_of(kept, waiting, notebooks)
    ends: list[JobEnd] = []
    if on == "slurm" and waiting:
        text = slurm_script(array, kept.name, sweep.resources, sweep.slurm)
        script = write_script(array.plan, text)
        for line in submission(script, kept.sweep_file):
            say(line)
        return None
    if on == "ray" and waiting:
        resources = resources_of(sweep.resources, [run.resolved.pilot for run in sweep.runs])
        ends = run_on_ray(array, resources, say, address=ray_address)
    elif waiting:
        with terminable():
            ends = run_here(array, slots, say)
    page = compare_sweep(kept)
    raise_failed(kept, ends, page)
    return page


def jobs_of(kept: KeptSweep, waiting: Sequence[KeptRun], notebooks: bool | None) -> JobArray:
    """The runs of ``waiting``, each as a job; notebooks: as ``workbench run`` takes it."""
    words = () if notebooks is None else ("--notebooks" if notebooks else "--no-notebooks",)
    names = {one.number: f"run {one.number}" for one in waiting}
    return JobArray("workbench.sweep.one_run", kept.folder / FILE, names, words)


def checked(sweep: Sweep) -> Sweep:
    """ConfigError with all that the stages' own checks find in any of its runs."""
    problems: dict[str, None] = {}
    for run in sweep.runs:
        try:
            check_pilot(run.resolved)
        except WorkbenchError as error:
            problems |= dict.fromkeys(f"run {run.number}: {x}" for x in error.got.splitlines())
    if problems:
        raise refused(list(problems))
    return sweep


def keep(sweep: Sweep) -> KeptSweep:
    """Written beside the runs, so that it is found by its name and each run by its number."""
    kept = KeptSweep(
        sweep.name,
        sweep.question,
        str(sweep.path),
        [
            KeptRun(
                run.number,
                run.differences,
                str(run.resolved.path),
                list(run.resolved.overrides),
                run.resolved.pilot.name,
                run.identity["digest"],
                run.identity["files"],
            )
            for run in sweep.runs
        ],
    )
    kept.save()
    return kept


def compare_sweep(kept: KeptSweep) -> Path | None:
    """Say what became of each run, and write the page of all that are finished."""
    found = [(one, one.run()) for one in kept.runs]
    for line in summary(found):
        say(line)
    finished = [run for _, run in found if run and is_finished(run)]
    if len(finished) < 2:
        say(f"{len(finished)} of {number_of(len(found), 'run')} finished: nothing to compare yet")
        return None
    page = kept.folder / PAGE
    write_text(page, compare_page(finished, finished[0].resolved().pilot.report.language))
    say(f"workbench compare {SWEEP}{kept.name} prints them side by side")
    return page


def summary(found: Sequence[tuple[KeptRun, Run | None]]) -> list[str]:
    """A line a run: number, what differs, decision or how far it is, how long, its name."""
    rows = []
    for one, run in found:
        differs = ", ".join(f"{name}={value}" for name, value in one.differences.items())
        if run is None:
            rows.append((str(one.number), differs, "not begun", "", ""))
            continue
        (row,) = run_rows([run])
        state = (
            row.state
            if row.stages is None
            else f"{row.stages[0]}/{number_of(row.stages[1], 'stage')}"
        )
        took = clock(row.took_s) if row.took_s else ""
        rows.append((str(one.number), differs, state, took, run.name))
    head = ("run", "differs in", "state", "took", "name")
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]


def dry_run(path: Path, jobs: int = 1) -> list[str]:
    """The runs with what differs, and the forecast of their time; nothing is written."""
    sweep = checked(read_sweep(path))
    slots = slots_of([run.resolved.pilot for run in sweep.runs], jobs)
    known_speeds: dict[str, Speeds] = {}
    lines, least, most, kept_bytes = [], 0.0, 0.0, 0.0
    largest: Forecast | None = None
    for run in sweep.runs:
        known = KeptRun(
            run.number, run.differences, "", [], run.resolved.pilot.name,
            run.identity["digest"], run.identity["files"],
        ).run()  # fmt: skip
        if known and is_finished(known):
            lines.append(f"{run.number:4}  {run.text or 'as the pilot is'}: finished, skipped")
            continue
        foreseen = forecast(run.resolved.pilot, known_speeds)
        low, high = foreseen.whole_s()
        least, most, kept_bytes = least + low, most + high, kept_bytes + foreseen.kept_bytes
        if largest is None or foreseen.memory_bytes > largest.memory_bytes:
            largest = foreseen
        begun = f", goes on: {known.name}" if known else ""
        lines.append(
            f"{run.number:4}  {run.text or 'as the pilot is'}: {clock(low)} to {clock(high)}{begun}"
        )
    lines.append(f"{number_of(len(sweep.runs), 'run')}, {len(slots)} at a time on {_places(slots)}")
    if largest is not None:
        lines.append(
            f"time:   {clock(least / len(slots))} to {clock(most)} in all, an estimate: from "
            "perfectly shared to no gain from runs beside each other"
        )
        need = len(slots) * largest.memory_bytes / 1e9
        lines.append(
            f"memory: about {need:.2g} GB with {number_of(len(slots), 'run')} of the largest at a "
            f"time; {largest.memory_free_bytes / 1e9:.2g} GB free"
        )
        lines.append(
            f"disk:   about {kept_bytes / 1e9:.2g} GB kept by all of them; "
            f"{largest.disk_free_bytes / 1e9:.2g} GB free"
        )
    return lines


def raise_failed(kept: KeptSweep, ends: Sequence[JobEnd], page: Path | None) -> None:
    """StageError for runs that failed twice, GateError where a gate that must hold failed."""
    failed = [end for end in ends if not end.is_finished]
    shown_page = f"; the finished ones: {shown(page)}" if page else ""
    if failed:
        numbers = ", ".join(str(end.number) for end in failed)
        raise StageError(
            f"sweep {kept.name}: {len(failed)} of {number_of(len(kept.runs), 'run')} did not "
            f"finish: {numbers}",
            next_step=f"their logs lie in {shown(kept.folder / 'logs')}; the same command goes on"
            + shown_page,
        )
    gates = [end.number for end in ends if end.code == GATE]
    if gates:
        raise GateError(
            f"sweep {kept.name}: a gate that must hold failed in runs {', '.join(map(str, gates))}",
            next_step="read their reports" + shown_page,
        )


def _done(one: KeptRun) -> bool:
    run = one.run()
    return run is not None and is_finished(run)


def _places(slots: Sequence[object]) -> str:
    devices = {str(getattr(slot, "name", slot)).split(",")[0] for slot in slots}
    return ", ".join(sorted(devices))
