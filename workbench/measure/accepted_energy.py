"""Energy of an answer that is accepted: one that came whole and that keeps to its prompt's check.

Under the load it is known which answers came whole, and the own prompts tell which share of an
arm's answers keep to their check; they are not the load's requests, so the energy of a whole answer
is divided by that share. The two are known independently of each other: on a logarithmic scale the
squares of their half widths add.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from workbench.records.metric import Metric
from workbench.wording.counts import number_of

ENERGY, RATIO = "energy_j_per_accepted_answer", "accepted_answer_energy_ratio"
Interval = tuple[float | None, float | None, float | None]
"""(value, lo, hi)."""


def accepted_shares(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """``accepted_share`` of each arm; empty where no own prompt has a check."""
    return {each.labels["arm"]: each for each in metrics if each.name == "accepted_share"}


def widened(found: Metric, shares: Iterable[Interval]) -> Metric:
    """``found``, already divided by the values of ``shares``, with their intervals in its own.

    It loses its interval where a share may be 0, and has none where it had none.
    """
    if found.value is None or found.lo is None or found.hi is None or found.lo <= 0:
        return found
    down, up = [math.log(found.value / found.lo)], [math.log(found.hi / found.value)]
    for value, lo, hi in shares:
        if not value or not lo or hi is None:
            why = "the share of accepted answers has no lower end above 0"
            return replace(found, lo=None, hi=None, reason=why)
        down.append(math.log(hi / value))
        up.append(math.log(value / lo))
    return replace(
        found,
        lo=found.value * math.exp(-math.hypot(*down)),
        hi=found.value * math.exp(math.hypot(*up)),
    )


def counting_checks(
    figures: Iterable[Metric], shares: Mapping[str, Metric], baseline: str
) -> Iterator[Metric]:
    """``figures`` of the load, those of accepted answers by the checks of own prompts as well.

    shares: ``accepted_share`` of each arm that was asked; none: no prompt has a check, and an
    answer that came whole is accepted. An arm that is not asked, an address, has no figure then.
    """
    for figure in figures:
        if not shares or figure.value is None or figure.name not in (ENERGY, RATIO):
            yield figure
        elif figure.name == ENERGY:
            yield _of_an_answer(figure, shares)
        else:
            yield _of_two_arms(figure, shares, baseline)


def _of_an_answer(figure: Metric, shares: Mapping[str, Metric]) -> Metric:
    arm = figure.labels["arm"]
    if why := _why_none(shares, arm):
        return _missing(figure, why)
    share = shares[arm]
    assert share.value
    found = figure.scaled(1 / share.value, f"; {_told(arm, share)}")
    return widened(found, [(share.value, share.lo, share.hi)])


def _of_two_arms(figure: Metric, shares: Mapping[str, Metric], baseline: str) -> Metric:
    """The shares of both arms are of the same prompts: taken as independent, the interval is too
    wide rather than too narrow where they answer alike."""
    arm = figure.labels["arm"]
    if why := _why_none(shares, baseline) or _why_none(shares, arm):
        return _missing(figure, why)
    before, own = shares[baseline], shares[arm]
    assert before.value and own.value
    said = f"; {_told(baseline, before)}, {_told(arm, own)}"
    found = figure.scaled(own.value / before.value, said)
    # Times a share is over its inverse, whose ends change places.
    value, lo, hi = (1 / end if end else None for end in (own.value, own.hi, own.lo))
    return widened(found, [(before.value, before.lo, before.hi), (value, lo, hi)])


def _why_none(shares: Mapping[str, Metric], arm: str) -> str:
    if arm not in shares or shares[arm].value is None:
        return f"own prompts are not put to {arm}: nothing says which of its answers are accepted"
    return "" if shares[arm].value else f"{arm}: no answer to own prompts keeps to its check"


def _told(arm: str, share: Metric) -> str:
    return (
        f"{share.value:.2%} of the answers of {arm} to {number_of(share.n, 'own prompt')} keep to "
        "their check"
    )


def _missing(figure: Metric, why: str) -> Metric:
    return Metric.missing(figure.name, figure.unit, why, **figure.labels)
