"""A piece of a load, to be replayed, and what of the load's burstiness it keeps.

A mean is not what hurts a server. Of the pieces that a replay is long enough for, ``typical`` takes
the one whose gaps vary as those of the whole load do (their CV) and whose busy windows are as busy
(the 95th percentile of the counts in windows), and only then the one with its mean rate. ``peak``
takes the piece with most requests, ``window`` the one that begins where the pilot says. What a
piece does not keep within a tenth stands in :attr:`Fidelity.lost`: a gap of two minutes fits into
no piece of one.

For the replay::

    profile = LoadProfile.from_record(record)
    piece = profile.piece("typical", length_s=duration_s * speedup, start_s=0.0)
    schedule = piece.schedule(speedup, LengthLimits(context=8192))
    record.facts["piece"] = piece.to_json(); record.notes += piece.fidelity.lost

Every arm is sent the same ``schedule``. Pieces that run over the end of the load go on at its
start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.errors import ConfigError
from workbench.load.planned import PlannedRequest
from workbench.load.summary import Grid
from workbench.wording.counts import number_of

PieceKind = Literal["typical", "peak", "window"]
KEPT = 0.10
"""What a piece may differ by from the load and still be said to keep it."""
CANDIDATES = 4096
EXAMINED = 24
"""Best candidates whose gaps are computed exactly."""
WINDOWS = 20
"""Of a piece, at least, that the busy ones are told by."""
RATE_WEIGHT = 0.1
"""Of the mean rate beside burstiness: it decides between pieces that keep the latter."""
MOST_REQUESTS = 1_000_000
"""Of a replay; the client keeps what became of each."""


@dataclass(frozen=True)
class LengthLimits:
    """What the server under test can take, in tokens; None where nothing limits it.

    context: of prompt and output together.
    """

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    context: int | None = None

    def cut(self, prompt: np.ndarray, output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lengths as they can be served. Of what is too long for the context the output keeps
        what it has up to a half, and the prompt gives way first."""
        prompt, output = np.asarray(prompt, np.int64), np.asarray(output, np.int64)
        if self.prompt_tokens is not None:
            prompt = np.minimum(prompt, self.prompt_tokens)
        if self.output_tokens is not None:
            output = np.minimum(output, self.output_tokens)
        if self.context is not None:
            output = np.minimum(output, np.maximum(self.context - prompt, self.context // 2))
            prompt = np.minimum(prompt, self.context - output)
        return np.maximum(prompt, 1), np.maximum(output, 1)

    def is_cut(self, prompt: np.ndarray, output: np.ndarray) -> np.ndarray:
        """Which requests are longer than can be served, ``[n]``."""
        shorter_prompt, shorter_output = self.cut(prompt, output)
        return (shorter_prompt < prompt) | (shorter_output < output)


@dataclass(frozen=True)
class Fidelity:
    """The load's figures and those of its piece, over windows of ``window_s``; None where a piece
    has too few requests for one."""

    window_s: float
    gap_cv: float
    piece_gap_cv: float | None
    p95: float
    piece_p95: float
    rate_per_s: float
    piece_rate_per_s: float

    @property
    def lost(self) -> list[str]:
        """What the piece does not keep within :data:`KEPT`, as sentences; empty if it keeps all."""
        found = []
        if self.piece_gap_cv is None:
            found.append("the replayed piece has too few requests for a CV of its gaps")
        elif _apart(self.gap_cv, self.piece_gap_cv) > KEPT:
            found.append(
                f"the gaps of the replayed piece have a CV of {self.piece_gap_cv:.3g}, those of "
                f"the whole load {self.gap_cv:.3g}: the replay is "
                + ("less" if self.piece_gap_cv < self.gap_cv else "more")
                + " bursty than the load"
            )
        if _apart(self.p95, self.piece_p95) > KEPT:
            found.append(
                f"95 % of the windows of {self.window_s:.3g} s have at most "
                f"{number_of(self.piece_p95, 'request', form='.4g')} in the replayed piece, "
                f"{self.p95:.4g} in the whole load"
            )
        return found


@dataclass(frozen=True)
class Piece:
    """requests: as in the profile, with times from the start of the piece."""

    kind: PieceKind
    start_s: float
    length_s: float
    requests: pd.DataFrame
    fidelity: Fidelity

    def schedule(self, speedup: float, limits: LengthLimits) -> list[PlannedRequest]:
        """The piece's requests as a client sends them, ``speedup`` times as fast."""
        prompt, output = (self.requests[name].to_numpy() for name in _LENGTHS)
        shorter = limits.cut(prompt, output)
        columns = zip(
            self.requests["start_s"].to_numpy() / speedup,
            *shorter,
            self.requests["class"],
            limits.is_cut(prompt, output),
            strict=True,
        )
        return [
            PlannedRequest(number, float(at), int(p), int(o), str(name), bool(c))
            for number, (at, p, o, name, c) in enumerate(columns)
        ]

    def to_json(self) -> dict[str, Any]:
        """Where the piece lies and how it compares, for ``facts``."""
        return {
            "kind": self.kind,
            "start_s": self.start_s,
            "length_s": self.length_s,
            "requests": len(self.requests),
            **asdict(self.fidelity),
            "lost": self.fidelity.lost,
        }


_LENGTHS = ("prompt_tokens", "output_tokens")


def choose_piece(
    kind: PieceKind,
    length_s: float,
    start_s: float,
    grid: Grid,
    span_s: float,
    gap_cv: float,
    window_s: float,
    between: Callable[[float, float], pd.DataFrame],
) -> Piece:
    """The piece of a load; see the module.

    grid, span_s, gap_cv: of the whole load. window_s: widest window that busy times are told by.
    between: the requests of a time range. Raises ConfigError when no request falls into the piece
    or more than MOST_REQUESTS do.
    """
    period_s = span_s + span_s / max(1, int(grid.counts.sum()) - 1)
    rate_per_s = int(grid.counts.sum()) / period_s
    if (expected := length_s * rate_per_s) > MOST_REQUESTS:
        raise ConfigError(
            f"a replay of {length_s:g} s of the load has "
            f"{number_of(expected, 'request', form='.3g')}",
            allowed=f"{MOST_REQUESTS}",
            next_step="lower deploy_rollback.duration_s or deploy_rollback.speedup",
        )
    if kind == "window" and start_s >= span_s:
        raise ConfigError(
            f"profile_load.piece_start_s: {start_s:g} s",
            allowed=f"before the end of the load, {span_s:g} s after its first request",
            next_step="let the window begin earlier",
        )
    width_s, counts = grid.at(min(window_s, length_s / WINDOWS, span_s / WINDOWS))
    p95 = float(np.quantile(counts, 0.95)) if len(counts) else 0.0

    def made(begin_s: float) -> Piece:
        requests = _ring(between, begin_s, length_s, span_s, period_s)
        inside = np.bincount(
            np.minimum(requests["start_s"] // width_s, np.ceil(length_s / width_s) - 1).astype(int),
            minlength=max(1, int(length_s / width_s)),
        )
        fidelity = Fidelity(
            width_s,
            gap_cv,
            _gap_cv(requests["start_s"].to_numpy()),
            p95,
            float(np.quantile(inside, 0.95)),
            rate_per_s,
            len(requests) / length_s,
        )
        return Piece(kind, float(begin_s), length_s, requests, fidelity)

    if length_s >= span_s or kind == "window":
        piece = made(start_s if kind == "window" else 0.0)
    else:
        begins_s = _candidates(kind, length_s, width_s, grid, gap_cv, p95, rate_per_s)
        pieces = [made(begin_s) for begin_s in begins_s]
        piece = min(pieces, key=_distance) if kind == "typical" else pieces[0]
    if not len(piece.requests):
        raise ConfigError(
            f"no request falls into a replay of {length_s:g} s of the load, which has "
            f"{rate_per_s:.3g} requests/s",
            allowed="a replay with at least one request",
            next_step="raise deploy_rollback.duration_s or deploy_rollback.speedup",
        )
    return piece


def _candidates(
    kind: PieceKind,
    length_s: float,
    width_s: float,
    grid: Grid,
    gap_cv: float,
    p95: float,
    rate_per_s: float,
) -> np.ndarray:
    """Where the most promising pieces begin, best first, told by the grid alone."""
    totals = grid.counts.sum(axis=1)
    windows = max(1, int(length_s / grid.width_s))
    begins = np.unique(np.linspace(0, len(totals) - windows, CANDIDATES).astype(int))
    upto = np.concatenate([[0], np.cumsum(totals)])
    found = upto[begins + windows] - upto[begins]
    if kind == "peak":
        return grid.width_s * begins[np.argsort(-found, kind="stable")[:1]]
    squares = np.concatenate([[0.0], np.cumsum(grid.gap_squares)])
    squares = squares[begins + windows] - squares[begins]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_s = windows * grid.width_s / found
        cv = np.sqrt(np.maximum(squares / found - mean_s**2, 0.0)) / mean_s
    together = max(1, round(width_s / grid.width_s))
    per_piece = max(1, windows // together)
    coarse = np.add.reduceat(totals, np.arange(0, len(totals), together))
    at = np.minimum(begins // together, max(0, len(coarse) - per_piece))
    busy = np.array([np.quantile(coarse[i : i + per_piece], 0.95) for i in at])
    rate = found / (windows * grid.width_s)
    distance = np.maximum(_apart(gap_cv, cv), _apart(p95, busy)) + RATE_WEIGHT * _apart(
        rate_per_s, rate
    )
    distance[found < 3] = np.inf
    best = np.argsort(distance, kind="stable")[:EXAMINED]
    return grid.width_s * begins[best]


def _distance(piece: Piece) -> float:
    f = piece.fidelity
    if f.piece_gap_cv is None:
        return np.inf
    return max(_apart(f.gap_cv, f.piece_gap_cv), _apart(f.p95, f.piece_p95)) + RATE_WEIGHT * _apart(
        f.rate_per_s, f.piece_rate_per_s
    )


def _apart(whole: float, part: Any) -> Any:
    """How far a figure of the piece is from the load's, as a share of the latter."""
    if whole == 0:
        return np.where(np.asarray(part) == 0, 0.0, np.inf)[()]
    return np.abs(np.asarray(part) / whole - 1.0)[()]


def _gap_cv(times_s: np.ndarray) -> float | None:
    gaps_s = np.diff(times_s)
    if len(gaps_s) < 2 or gaps_s.mean() <= 0:
        return None
    return float(gaps_s.std() / gaps_s.mean())


def _ring(
    between: Callable[[float, float], pd.DataFrame],
    begin_s: float,
    length_s: float,
    span_s: float,
    period_s: float,
) -> pd.DataFrame:
    """The requests from ``begin_s`` on, the load taken as a ring that closes with a mean gap."""
    parts, done_s, at_s = [], 0.0, begin_s
    while done_s < length_s:
        rest_s = min(length_s - done_s, period_s - at_s)
        part = between(at_s, at_s + rest_s)
        parts.append(part.assign(start_s=part["start_s"] - at_s + done_s))
        done_s, at_s = done_s + rest_s, 0.0
    return pd.concat(parts, ignore_index=True)
