"""Stage 1: the load this pilot is judged under, from a trace or a declaration.

The figures of a declared load are recorded as assumed and without intervals: an interval
would describe the random draw, not the site.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from workbench.load.arrivals import declared_trace
from workbench.load.formats import read_trace
from workbench.load.profile import LoadProfile
from workbench.load.trace import CLASSES, Trace
from workbench.measure.dependence import quantile_over_time, rate_over_time, share_over_time
from workbench.measure.statistics import Estimate
from workbench.pilot.sections.profile_load import ProfileLoad
from workbench.pilot.spec import Pilot
from workbench.stages.context import StageContext

QUANTILES = (0.5, 0.9, 0.95, 0.99)
RATE_WINDOWS = 400
"""Windows of the interval of the rate; those of the curve are the pilot's ``window_s``."""


def check(pilot: Pilot) -> list[str]:
    """Raises ConfigError for a trace that cannot be read, before any stage has started."""
    _trace(pilot)
    return []


def run(context: StageContext) -> None:
    """Fill tables ``requests`` and ``windows``, and the figures of the load."""
    section, record = context.pilot.profile_load, context.record
    trace = _trace(context.pilot)
    profile = LoadProfile.of(trace, section.interactive_max_output_tokens)
    context.progress.note(f"{len(profile.requests)} requests from {profile.source}")

    for note in trace.notes:
        context.note(note)
    record.facts.update(
        source=profile.source,
        kind=profile.kind,
        slo={
            "interactive": section.interactive_slo.model_dump(),
            "batch": section.batch_slo.model_dump(),
        },
    )
    record.save_table("requests", profile.requests)
    record.save_table("windows", profile.rate_windows(section.window_s))
    for name, unit, how, estimate, labels in _figures(profile, section):
        if profile.kind == "assumed":
            estimate = replace(estimate, lo=None, hi=None, method="", reason=None)
        record.add(estimate.metric(name, unit, how, profile.kind, **labels))


def _trace(pilot: Pilot) -> Trace:
    section = pilot.profile_load
    if section.trace:
        return read_trace(Path(section.trace), section.format)
    return declared_trace(section.synthetic, pilot.seed)


def _figures(
    profile: LoadProfile, section: ProfileLoad
) -> list[tuple[str, str, str, Estimate, dict[str, str]]]:
    """(name, unit, how, estimate, labels) of every figure."""
    requests, source = profile.requests, profile.source
    n = len(requests)
    figures = [
        (
            "requests",
            "requests",
            source,
            Estimate(float(n), None, None, n, "counted", basis="exact"),
            {},
        ),
        (
            "request_rate_per_s",
            "requests/s",
            f"{source}: requests after the first over the time they took",
            _rate(profile),
            {},
        ),
        (
            "gap_cv",
            "",
            f"{source}: standard deviation over mean of the gaps",
            Estimate(
                profile.gap_cv, None, None, n - 1, "", reason="gaps come in bursts: no interval"
            ),
            {},
        ),
    ]
    figures += [
        (
            column,
            "tokens",
            source,
            quantile_over_time(requests[column], q),
            {"quantile": f"p{100 * q:g}"},
        )
        for column in ("prompt_tokens", "output_tokens")
        for q in QUANTILES
    ]
    figures += [
        (
            "class_share",
            "",
            f"{source}: class of the trace, else batch above "
            f"{section.interactive_max_output_tokens} output tokens",
            share_over_time(requests["class"] == name, requests["output_tokens"]),
            {"class": name},
        )
        for name in CLASSES
    ]
    return figures


def _rate(profile: LoadProfile) -> Estimate:
    """The mean rate; its interval from short windows, whose autocorrelation shows its bursts."""
    window_s = profile.span_s / RATE_WINDOWS
    windows = profile.rate_windows(window_s)
    whole = windows[windows["start_s"] + window_s <= profile.span_s * (1 + 1e-9)]
    counts = whole.groupby("start_s")["requests"].sum()  # in time order
    return replace(rate_over_time(counts, window_s), value=profile.rate_per_s)
