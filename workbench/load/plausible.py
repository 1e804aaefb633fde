"""What in a trace is allowed and still unlikely: said, so that a wrong unit does not pass."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

HIGHEST_PER_S, LOWEST_PER_S = 1000.0, 0.01
"""Mean rates of one service beyond which the unit of the times is the likelier explanation."""
HOUR_S = 3500.0
"""A gap from here on may be an hour that a local clock left out."""
UNUSUAL = 20.0
"""Mean gaps that such a gap must have, so that a quiet trace is not called full of them."""
FEWEST = 20


def implausible(summary: dict[str, Any]) -> list[str]:
    """Sentences about rates and gaps of a profile; none where nothing is unlikely."""
    if summary["kind"] != "measured":
        return []
    found = []
    rate, n = summary["rate_per_s"], summary["requests"]
    unit = "are the times in another unit? profile_load.time_unit declares it"
    if rate > HIGHEST_PER_S:
        found.append(f"{rate:.4g} requests/s over the whole trace is much for one service: {unit}")
    if rate < LOWEST_PER_S and n >= FEWEST:
        found.append(
            f"{rate:.3g} requests/s over the whole trace, one in {1 / rate:.0f} s, is little for a "
            f"service: {unit}"
        )
    mean_s = summary["gaps"]["mean_s"]
    long = [(at, gap) for at, gap in summary["gaps"]["longest"]
            if gap >= HOUR_S and gap >= UNUSUAL * mean_s]  # fmt: skip
    if long:
        at, gap = long[0]
        others = f", and {len(long) - 1} more such gaps or longer" if len(long) > 1 else ""
        local = (
            "; if a local clock went forward there, profile_load.time_zone closes it"
            if summary["origin_s"] is not None and not summary["time_zone"] and gap < 1.5 * 3600
            else ""
        )
        found.append(
            f"no request for {gap / 3600:.2f} h after {_moment(summary, at)}{others}{local}"
        )
    return found


def _moment(summary: dict[str, Any], start_s: float) -> str:
    """A moment of the trace as a person reads it."""
    if summary["origin_s"] is None:
        return f"{start_s:.0f} s from the first request"
    moment = datetime.fromtimestamp(summary["origin_s"] + start_s, UTC)
    if summary["time_zone"]:
        moment = moment.astimezone(ZoneInfo(summary["time_zone"]))
    return moment.strftime("%Y-%m-%d %H:%M:%S")
