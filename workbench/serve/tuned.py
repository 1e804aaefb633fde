"""What a sweep comes to: the best settings of each arm, as figures, tables and text to paste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pandas as pd

from workbench.measure.statistics import Estimate
from workbench.records.metric import Metric
from workbench.serve.carries import Carries, Why
from workbench.serve.rate_search import Point
from workbench.serve.tuning import PROFILE, Searched

PER_HOUR = 3600.0


@dataclass(frozen=True)
class Best:
    """Of one arm and one kind of requests, among the settings that carry the load's rate, or among
    all where none does or the requests are not the load's. cheapest: most requests a second, so
    least machine time, and money, for each. thriftiest: least energy a request; None where nothing
    was metered."""

    arm: str
    requests: str
    cheapest: Searched
    thriftiest: Searched | None


def best_settings(found: Sequence[Searched], load_per_s: float) -> list[Best]:
    """One for each arm and kind of requests of which some setting has a largest rate."""
    best = []
    for arm, requests in dict.fromkeys((each.arm, each.requests) for each in found):
        own = [s for s in found if (s.arm, s.requests) == (arm, requests) and s.rate_per_s]
        if requests == PROFILE:
            own = [s for s in own if s.rate_per_s >= load_per_s] or own
        if own:
            metered = [(s.energy_j, s) for s in own if s.energy_j is not None]
            thrifty = min(metered, key=itemgetter(0), default=(0.0, None))[1]
            cheapest = max(own, key=lambda s: s.rate_per_s)
            best.append(Best(arm, requests, cheapest, thrifty))
    return best


def tuned_figures(
    found: Sequence[Searched], load_per_s: float, price_per_hour: float | None, currency: str
) -> list[Metric]:
    """The largest rate, energy and price of every search, and what it is of the load's rate."""
    figures = []
    for each in found:
        figures += [
            _rate(each),
            _energy(each),
            _price(each, price_per_hour, currency),
        ]
    for arm in dict.fromkeys(each.arm for each in found):
        figures.append(_over_load(arm, found, load_per_s))
    return figures


def _rate(each: Searched) -> Metric:
    name, unit, rate = "largest_rate_per_s", "requests/s", each.found
    if rate.rate_per_s is None:
        return Metric.missing(name, unit, _said(each), **each.labels())
    bracket = "no interval: " + ("at least this: " if rate.kind == "at_least" else "") + rate.why
    how = "largest rate offered at which each class met its targets"
    return Estimate(rate.rate_per_s, None, None, len(rate.points), "", reason=bracket).metric(
        name, unit, how, "measured", **each.labels()
    )


def _energy(each: Searched) -> Metric:
    name, best = "tuned_energy_j_per_request", each.found.best
    if best is None or best.energy_j is None:
        why = _said(each) if best is None else f"not metered: {best.no_energy}"
        return Metric.missing(name, "J", why, **each.labels())
    reason = "no interval: one point"
    return Estimate(best.energy_j, None, None, best.requests, "", reason=reason).metric(
        name,
        "J",
        "gross energy over the requests answered, at the largest rate",
        "measured",
        **each.labels(),
    )


def _price(each: Searched, per_hour: float | None, currency: str) -> Metric:
    name, rate = "tuned_cost_per_1k_requests", each.found.rate_per_s
    if rate is None:
        return Metric.missing(name, currency, _said(each), **each.labels())
    if per_hour is None:
        why = "deploy_rollback.tuning.price_per_hour is not given"
        return Metric.missing(name, currency, why, **each.labels())
    return Estimate(
        1e3 * per_hour / (PER_HOUR * rate), None, None, 1, "", reason="no interval: as the rate"
    ).metric(
        name,
        currency,
        f"{per_hour:g} {currency} an hour of this machine over its largest rate",
        "derived",
        **each.labels(),
    )


def _over_load(arm: str, found: Sequence[Searched], load_per_s: float) -> Metric:
    name, own = "largest_rate_over_load", [s for s in found if s.arm == arm]
    own = [s for s in own if s.requests == PROFILE]
    rated = [s for s in own if s.rate_per_s]
    if not rated:
        return Metric.missing(name, "", "; ".join(dict.fromkeys(map(_said, own))), arm=arm)
    best = max(rated, key=lambda s: s.rate_per_s)
    reason = "no interval: the largest of several searches"
    value = best.rate_per_s / load_per_s
    return Estimate(value, None, None, len(rated), "", reason=reason).metric(
        name,
        "",
        f"largest rate of the load's own requests within the targets ({best.setting.flags}) over "
        f"the load's mean rate of {load_per_s:.4g} a second",
        "derived",
        arm=arm,
    )


def _said(each: Searched) -> str:
    return ("no rate held: " if each.found.kind == "none" else "not measured: ") + each.found.why


def points_table(found: Sequence[Searched]) -> pd.DataFrame:
    """One row a point. met_share: of the class that met its targets least."""
    rows = [
        {**_place(each), "number": number, **_row(point)}
        for each in found
        for number, point in enumerate(each.found.points)
    ]
    columns = [*_PLACE, "number", *_row(Point(0.0, "refused", 0.0))]
    frame = pd.DataFrame(rows, columns=columns)
    numbers = ["met_share", "met_lo", "met_hi", "p50_ms", "p95_ms", "p99_ms", "energy_j"]
    return frame.astype({name: float for name in numbers} | {"class": "str", "why": "str"})


_PLACE = ("arm", "requests", "slots", "batch_wait_ms")


def _place(each: Searched) -> dict[str, Any]:
    setting = each.setting
    return dict(
        zip(
            _PLACE,
            (each.arm, each.requests, setting.slots, setting.batch_wait_ms),
            strict=True,
        )
    )


def _row(point: Point) -> dict[str, Any]:
    met = [(e.value, name) for name, e in point.met.items() if e.value is not None]
    worst = min(met, key=itemgetter(0), default=(0.0, None))[1]
    share = point.met[worst] if worst else None
    return {
        "rate_per_s": point.rate_per_s,
        "achieved_per_s": point.achieved_per_s,
        "outcome": point.outcome,
        "requests_sent": point.requests,
        "took_s": point.took_s,
        "class": worst,
        "met_share": share.value if share else None,
        "met_lo": share.lo if share else None,
        "met_hi": share.hi if share else None,
        **{f"{q}_ms": point.ttft_ms.get(q) for q in ("p50", "p95", "p99")},
        "most_in_server": max(point.concurrency, default=0),
        "last_in_server": point.concurrency[-1] if point.concurrency else 0,
        "faults": sum(point.faults.values()),
        "energy_j": point.energy_j,
        "why": point.why,
    }


def searches_table(found: Sequence[Searched], load_per_s: float) -> pd.DataFrame:
    """One row a search; cheapest, thriftiest: the setting that was chosen for its arm."""
    chosen = best_settings(found, load_per_s)
    cheapest = [best.cheapest for best in chosen]
    thriftiest = [best.thriftiest for best in chosen]
    rows = [
        {
            **_place(each),
            "result": each.found.kind,
            "rate_per_s": each.found.rate_per_s,
            "failed_per_s": each.found.failed_per_s,
            "confirmed": each.found.confirmed,
            "energy_j": each.energy_j,
            "cheapest": any(each is other for other in cheapest),
            "thriftiest": any(each is other for other in thriftiest),
            "why": each.found.why,
        }
        for each in found
    ]
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(("rate_per_s", "failed_per_s", "energy_j"), float))


def settings_text(found: Sequence[Searched], load_per_s: float, served: str = "RUN") -> str:
    """The chosen settings as text: what to give ``workbench serve``, and the lines of a pilot."""
    blocks = []
    for best in best_settings(found, load_per_s):
        if best.requests != PROFILE:
            continue
        blocks.append(_block(best.arm, "least machine time", best.cheapest, load_per_s, served))
        if best.thriftiest is None:
            why = best.cheapest.found.best.no_energy if best.cheapest.found.best else ""
            blocks.append(f"# {best.arm}, least energy: not metered: {why}")
        elif best.thriftiest is not best.cheapest:
            blocks.append(_block(best.arm, "least energy", best.thriftiest, load_per_s, served))
    for arm in dict.fromkeys(each.arm for each in found):
        own = [s for s in found if s.arm == arm and s.requests == PROFILE]
        if not any(s.found.rate_per_s for s in own):
            blocks.append(f"# {arm}: no setting: {'; '.join(dict.fromkeys(map(_said, own)))}")
    return "\n".join(blocks) + "\n"


def _block(arm: str, why: str, chosen: Searched, load_per_s: float, served: str) -> str:
    rate_per_s = chosen.rate_per_s
    least = "at least " if chosen.found.kind == "at_least" else ""
    energy = f", {chosen.energy_j:.3g} J a request" if chosen.energy_j is not None else ""
    return (
        f"# {arm}, {why}: {least}{rate_per_s:.4g} requests/s of the load within its targets, "
        f"{rate_per_s / load_per_s:.3g} times its rate{energy}\n"
        f"workbench serve {served} {chosen.setting.flags}\n"
        f"{chosen.setting.pilot_lines}"
    )


def tuned_answer(
    arm: str,
    found: Sequence[Searched],
    load_per_s: float,
    *,
    cut_share: float,
    wanted_share: float,
) -> Carries | None:
    """Whether the arm carries the load in any setting, as far as the sweep can say; None where it
    says nothing of it.

    **yes** at a point at the load's rate or faster whose whole intervals keep the share.
    **no** when every setting fell behind, or missed with its whole interval, at that rate or below.
    """
    own = [s for s in found if s.arm == arm and s.requests == PROFILE and s.found.points]
    points = [(p.rate_per_s / load_per_s, p) for s in own for p in s.found.points]
    surely = [pace for pace, p in points if p.outcome == "held" and _keeps(p, wanted_share)]
    held = [s.rate_per_s / load_per_s for s in own if s.rate_per_s]
    if surely and max(surely) >= 1 and cut_share <= 1 - wanted_share:
        return Carries("yes", "tuned", max(surely))
    failed = [
        min(
            (p.rate_per_s / load_per_s for p in s.found.points if _fails(p, wanted_share)),
            default=None,
        )
        for s in own
    ]
    if own and all(pace is not None and pace <= 1 for pace in failed) and max(held, default=0) < 1:
        return Carries("no", "tuned", max(pace for pace in failed if pace is not None))
    if held and max(held) >= 1:
        why: Why = "tuned_cut" if cut_share > 1 - wanted_share else "tuned_open"
        return Carries("not_measured", why, max(held))
    return None


def _keeps(point: Point, wanted_share: float) -> bool:
    return bool(point.met) and all(
        e.lo is not None and e.lo >= wanted_share for e in point.met.values()
    )


def _fails(point: Point, wanted_share: float) -> bool:
    missed = any(e.hi is not None and e.hi < wanted_share for e in point.met.values())
    return point.outcome == "overloaded" or (point.outcome == "missed" and missed)
