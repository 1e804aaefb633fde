"""Stage 1: the load this pilot is judged under, from a trace, a shared profile or a declaration.

A trace is read once, when the pilot is checked; what that pass found is kept
(:mod:`workbench.load.kept`), and this stage and all later ones take it from there. The figures of a
declared load are recorded as assumed and without intervals: an interval would describe the random
draw, not the site.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from workbench.load.arrivals import declared_requests
from workbench.load.kept import facts_of, profile_of_trace, put
from workbench.load.likeness import PIECE_S, likeness
from workbench.load.profile import (
    GRID,
    MOST_ORDERED,
    REQUESTS,
    SUMMARY,
    LoadProfile,
    generated_trace,
    read_summary,
    write_batches,
)
from workbench.load.requests import CLASSES
from workbench.load.trace import Trace
from workbench.measure.dependence import quantile_over_time, rate_over_time, share_over_time
from workbench.measure.statistics import Estimate
from workbench.pilot.sections.profile_load import ProfileLoad
from workbench.pilot.spec import Pilot
from workbench.stages.context import StageContext
from workbench.wording.counts import number_of

QUANTILES = (0.5, 0.9, 0.95, 0.99)
RATE_WINDOWS = 400
"""Windows of the interval of the rate; those of the curve are the pilot's ``window_s``."""
LONGEST_GENERATED_S = 3600.0
"""Of a load from a shared profile, unless the pilot says."""
MB = 1_000_000
DECLARED = "there is no trace: the load is declared in profile_load.synthetic, not measured"


def check(pilot: Pilot) -> list[str]:
    """Raises ConfigError for a trace that cannot be read, before any stage has started."""
    section = pilot.profile_load
    if section.trace:
        with _bar() as progress:
            profile_of_trace(section, pilot.seed, progress)
    elif section.profile:
        read_summary(Path(section.profile))
    else:
        declared_requests(section.synthetic, pilot.seed)
    return []


def run(context: StageContext) -> None:
    """Fill tables ``requests``, ``windows``, ``grid`` and ``likeness``, artefact ``profile``."""
    section, record = context.pilot.profile_load, context.record
    profile = _profile(context)
    context.progress.note(
        f"{number_of(profile.summary['requests'], 'request')} from {profile.source}"
    )

    for note in profile.summary["notes"]:
        context.note(note)
    record.facts.update(
        source=profile.source,
        kind=profile.kind,
        slo={
            "interactive": section.interactive_slo.model_dump(),
            "batch": section.batch_slo.model_dump(),
        },
    )
    record.tables.update(requests=REQUESTS, grid=GRID)
    record.artefacts["profile"] = SUMMARY
    record.save_table("windows", profile.rate_windows(section.window_s))
    length_s = min(PIECE_S, profile.span_s / 2)
    piece = profile.piece(
        section.piece, length_s, min(section.piece_start_s, profile.span_s / 2), section.window_s
    )
    record.save_table("likeness", likeness(profile, piece, section.window_s, context.pilot.seed))
    for name, unit, how, estimate, labels in _figures(profile, section):
        if profile.kind != "measured" and estimate.value is not None:
            estimate = replace(estimate, lo=None, hi=None, method="", reason=None)
        record.add(estimate.metric(name, unit, how, profile.kind, **labels))


def _profile(context: StageContext) -> LoadProfile:
    """The profile, with its files in the stage's folder."""
    section, folder = context.pilot.profile_load, context.folder
    folder.mkdir(parents=True, exist_ok=True)
    seed = context.pilot.seed
    if section.trace:

        def report(done: int, total: int) -> None:
            context.progress.step("reading the trace", done // MB, max(1, total // MB), "MB")

        kept = profile_of_trace(section, seed, report)
        context.record.facts["trace"] = facts_of(kept)
        if section.generate is None:
            return put(kept, folder)
        summary = kept.summary
    elif section.profile:
        summary = read_summary(Path(section.profile))
    else:
        batches = [declared_requests(section.synthetic, seed)]
        store = write_batches(batches, folder / REQUESTS, 2**31 - 1, lambda done: None)
        trace = Trace(store, "profile_load.synthetic", "assumed", (DECLARED,))
        return LoadProfile.of(trace, section.window_s, folder)
    wanted = section.generate
    duration_s = wanted.duration_s if wanted else min(summary["span_s"], LONGEST_GENERATED_S)
    scale = wanted.scale if wanted else 1.0
    trace = generated_trace(summary, duration_s, scale, seed, folder / REQUESTS)
    return LoadProfile.of(trace, section.window_s, folder)


LabelledEstimate = tuple[str, str, str, Estimate, dict[str, str]]


def _figures(profile: LoadProfile, section: ProfileLoad) -> Iterator[LabelledEstimate]:
    """(name, unit, how, estimate, labels) of every figure."""
    summary, source = profile.summary, profile.source
    n = summary["requests"]
    yield (
        "requests",
        "requests",
        source,
        Estimate(float(n), None, None, n, "counted", basis="exact"),
        {},
    )
    yield (
        "request_rate_per_s",
        "requests/s",
        f"{source}: requests after the first over the time they took",
        _rate(profile),
        {},
    )
    yield (
        "gap_cv",
        "",
        f"{source}: standard deviation over mean of the gaps",
        _plain(profile.gap_cv, n - 1, "gaps come in bursts: no interval"),
        {},
    )
    yield (
        "gap_autocorrelation",
        "",
        f"{source}: of neighbouring gaps; 0 where they are independent",
        _plain(summary["gaps"]["autocorrelation"], n - 1),
        {},
    )
    for found in summary["dispersion"]:
        yield (
            "count_dispersion",
            "",
            f"{source}: variance over mean of the requests in windows of "
            f"{found['window_s']:.3g} s; 1 for Poisson at any width",
            _plain(found["index"], n),
            {"window": f"{found['window_s']:.3g} s"},
        )
    ordered = profile.thinned(MOST_ORDERED)
    for column in ("prompt_tokens", "output_tokens"):
        for q in QUANTILES:
            name = f"p{100 * q:g}"
            estimate = quantile_over_time(ordered[column], q)
            value = summary[column]["quantiles"][name]
            yield column, "tokens", source, replace(estimate, value=value), {"quantile": name}
    for name in CLASSES:
        estimate = share_over_time(ordered["class"] == name, ordered["output_tokens"])
        yield (
            "class_share",
            "",
            f"{source}: class of the trace, else batch above "
            f"{number_of(section.interactive_max_output_tokens, 'output token')}",
            replace(estimate, value=summary["classes"][name] / n),
            {"class": name},
        )
    yield from _who(profile)


def _who(profile: LoadProfile) -> Iterator[LabelledEstimate]:
    """Figures that only some traces can give: sessions, tenants, concurrency, prefixes."""
    summary, source = profile.summary, profile.source
    if sessions := summary["sessions"]:
        yield (
            "session_turns",
            "requests",
            f"{source}: mean requests of a session; {sessions['how']}",
            _plain(sessions["turns_mean"], sessions["sessions"]),
            {},
        )
    if tenants := summary["tenants"]:
        yield (
            "largest_tenant_share",
            "",
            f"{source}: requests of the largest of {number_of(tenants['tenants'], 'tenant')}",
            _plain(tenants["largest_shares"][0], tenants["tenants"]),
            {},
        )
    if at_once := summary["concurrency"]:
        how = f"{source}: requests served at the same time, from their durations"
        for name in ("mean", "p95", "most"):
            estimate = _plain(at_once[name], summary["requests"])
            yield "concurrency", "requests", how, estimate, {"statistic": name}
    else:
        missing = "the trace has no duration and no end of its requests (columns.duration)"
        none = Estimate(None, None, None, 0, "", reason=missing)
        yield "concurrency", "requests", "", none, {"statistic": "mean"}
    if summary["prefix_reuse"] is not None:
        yield (
            "prefix_reuse_share",
            "",
            f"{source}: blocks of prompts whose hash was seen before",
            _plain(summary["prefix_reuse"], summary["requests"]),
            {},
        )


def _plain(value: float, n: int, reason: str | None = None) -> Estimate:
    return Estimate(float(value), None, None, n, "", reason=reason)


def _rate(profile: LoadProfile) -> Estimate:
    """The mean rate; its interval from short windows, whose autocorrelation shows its bursts."""
    width_s, counts = profile.grid.at(profile.span_s / RATE_WINDOWS)  # in time order
    return replace(rate_over_time(counts, width_s), value=profile.rate_per_s)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal while a trace is read before any stage, so before any event."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (
        TextColumn("reading the trace"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("")
        yield lambda done, total: bars.update(task, completed=done, total=total)
