"""A log that came afterwards, held against the turns of a finished session.

Reason codes, guard times and errors are those of a live log, for it is the same session that
asks (:class:`~workbench.measure.meters.past.PastSession`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from workbench.errors import ConfigError, StageError
from workbench.measure.exports.log import PowerLog, Series, utc_text
from workbench.measure.meters.log_check import ZONE_STEP_S
from workbench.measure.meters.past import (
    MeteredTurn,
    PastSession,
    lag_from_turns,
    response_from_turns,
)
from workbench.measure.meters.response import Response
from workbench.measure.meters.rows import WINDOW_COLUMNS, energy_rows
from workbench.measure.meters.sample import Channel
from workbench.measure.meters.session import ROWS_WANTED
from workbench.measure.session import TURN_COLUMNS
from workbench.paths import shown
from workbench.wording.counts import number_of

MARGIN_S = 300.0
"""Of the log, before the first and after the last window."""


@dataclass(frozen=True)
class HeldAgainst:
    """session: of the log's samples. said: what was learned of each channel, for a person.
    no_idle: why nothing is net of idle; empty where something is."""

    session: PastSession
    said: list[str]
    no_idle: str

    def rows(self, windows: pd.DataFrame, about: list[str], apart: bool = False) -> pd.DataFrame:
        """Columns ``about`` and ``WINDOW_COLUMNS``: of each window, once, the energy by the log on
        every basis of its channels. apart: there was a rest on either side."""
        rows = []
        for window in windows.drop_duplicates([*about, "start_s"]).to_dict("records"):
            at = {name: window[name] for name in about}
            rows += energy_rows(self.session, at, window["start_s"], window["end_s"], apart)
        return pd.DataFrame(rows, columns=[*about, *WINDOW_COLUMNS])


def hold_against(
    log: PowerLog,
    turns: pd.DataFrame,
    further: Sequence[pd.DataFrame],
    rests: Sequence[tuple[float, float]],
    max_gap_s: float,
) -> HeldAgainst:
    """turns: table ``energies`` of measure_ab, which tell how late the log is. further: windows of
    the run's other work, such as its training. rests: Unix times in which the machine was idle.

    Raises ConfigError where the log does not reach the turns, StageError where their times are
    not known.
    """
    if not {"start_s", "end_s"} <= set(turns.columns) or not len(turns):
        raise StageError(
            "the turns of this run have no wall-clock times",
            allowed="a run of this version of the workbench",
            next_step="measure again: workbench run PILOT.yaml --from measure_ab --force",
        )
    turns = turns.drop_duplicates([*TURN_COLUMNS, "start_s"])
    _require_overlap(log, (float(turns["start_s"].min()), float(turns["end_s"].max())))
    windows = pd.concat([one[["start_s", "end_s"]] for one in (turns, *further)])
    edges_s = [*windows["start_s"], *windows["end_s"], *(at_s for rest in rests for at_s in rest)]
    begin_s, end_s = min(edges_s), max(edges_s)
    near = [one.within(begin_s - MARGIN_S, end_s + MARGIN_S) for one in log.series]
    responses, said = _responses(near, _turns(turns))
    said += _too_coarse(near, turns)
    series = {one.channel: (one.times_s, one.values) for one in near}
    session = PastSession(series, responses, max_gap_s, rests)
    return HeldAgainst(session, said, _no_idle(session, rests))


def _no_idle(session: PastSession, rests: Sequence[tuple[float, float]]) -> str:
    """Why nothing is net of idle; empty where it is not so."""
    why = "this run's records hold no rest"
    for rest in rests:
        for energy in session.energies(*rest):
            if energy.energy_j is not None:
                return ""
            why = (
                f"of its {number_of(len(rests), 'rest')} none has a figure ({energy.reason}: "
                f"{energy.text})"
            )
    return (
        f"nothing is net of idle: {why}; measured again with measure_ab.meters.turn_s it rests "
        "before and after its work, for so long"
    )


def _turns(windows: pd.DataFrame) -> list[MeteredTurn]:
    return [
        MeteredTurn(turn["start_s"], turn["end_s"], f"{turn['arm']} {turn['class']}")
        for turn in windows.to_dict("records")
    ]


def _require_overlap(log: PowerLog, span_s: tuple[float, float]) -> None:
    begin_s, end_s = log.span_s
    if begin_s < span_s[1] and end_s > span_s[0]:
        return
    off_s = begin_s - span_s[0] if begin_s > span_s[1] else end_s - span_s[1]
    quarters = round(off_s / ZONE_STEP_S)
    hint = (
        f"; it is off by {abs(off_s) / 3600:.1f} h: is --zone that of the machine that wrote it?"
        if 0 < abs(quarters) <= 14 * 4
        else ""
    )
    raise ConfigError(
        f"{shown(log.path)} is of {utc_text(begin_s)} to {utc_text(end_s)}, the run's turns of "
        f"{utc_text(span_s[0])} to {utc_text(span_s[1])} (UTC){hint}",
        allowed="a log that holds the turns of the run",
        next_step="give the log of that time, or correct --zone",
    )


def _responses(
    near: list[Series], turns: list[MeteredTurn]
) -> tuple[dict[Channel, Response | None], list[str]]:
    """How late each power is. One that its own rows do not tell has what the clearest of the others
    has: they are of one logger."""
    found: dict[Channel, Response | None] = {}
    for one in near:
        if one.channel.lag_unknown:
            learn = lag_from_turns if one.channel.quantity == "energy" else response_from_turns
            found[one.channel] = learn(one.times_s, one.values, turns)
    known = [response for response in found.values() if response]
    clearest = min(known, key=lambda r: r.lag_error_s + r.averaging_error_s, default=None)
    said = []
    for channel, response in found.items():
        found[channel] = taken = response or clearest
        if taken is None:
            said.append(
                f"{channel.name}: it does not show the turns, so how late it is remains unknown "
                "and it gives no figure; where that is known, declare --lag and --averaging (s)"
            )
            continue
        of = "" if response else ", as another source of this log"
        said.append(f"{channel.name}: {taken.text}, learned from the turns{of}")
    return found, said


def _too_coarse(near: list[Series], windows: pd.DataFrame) -> list[str]:
    """Said of a log whose rows are too far apart for the turns that there were."""
    turn_s = float((windows["end_s"] - windows["start_s"]).median())
    powers = [o.period_s for o in near if o.channel.quantity == "power" and o.period_s is not None]
    period_s = max(powers, default=0.0)
    wanted_s = (2 + ROWS_WANTED) * period_s
    if turn_s >= wanted_s / 2:
        return []
    return [
        f"the turns of this run last {turn_s:.3g} s, and a log with a row every {period_s:.3g} s "
        f"wants {wanted_s:.3g} s, longer still where it is late or averaged: measure again with "
        f"measure_ab.meters.turn_s: {wanted_s:.3g}"
    ]
