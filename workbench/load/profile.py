"""What "representative" means for this pilot: the requests, their classes, and a replay.

The profile keeps the requests themselves. Bursts and the tie between prompt and output
length, both of which a fitted distribution would lose, then survive into the replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from workbench.errors import ConfigError
from workbench.load.trace import Trace
from workbench.records.stage_record import StageRecord

CANDIDATES = 64
"""Cut-outs that :func:`replay_schedule` chooses from."""
MOST_REQUESTS = 1_000_000
"""Of a replay; the client keeps what became of each."""


@dataclass(frozen=True)
class LoadProfile:
    """requests: ``start_s`` (ascending from 0), ``prompt_tokens``, ``output_tokens`` and
    ``class`` (``interactive`` or ``batch``). kind: see :class:`workbench.load.trace.Trace`.

    >>> import pandas as pd
    >>> from workbench.api import LoadProfile
    >>> requests = pd.DataFrame({
    ...     "start_s": [0.0, 1.0, 4.0], "prompt_tokens": [90, 40, 70],
    ...     "output_tokens": [20, 30, 900], "class": ["interactive", "interactive", "batch"]})
    >>> profile = LoadProfile(requests, "by hand", "assumed")
    >>> profile.span_s, profile.rate_per_s, profile.gap_cv
    (4.0, 0.5, 0.5)
    """

    requests: pd.DataFrame
    source: str
    kind: Literal["measured", "assumed"]

    @classmethod
    def of(cls, trace: Trace, interactive_max_output_tokens: int) -> LoadProfile:
        """A trace with every request in a class: the one the trace says, else by its output."""
        requests = trace.requests.copy()
        long = requests["output_tokens"] > interactive_max_output_tokens
        by_length = np.where(long, "batch", "interactive")
        requests["class"] = requests["class"].where(requests["class"] != "", by_length)
        return cls(requests, trace.source, trace.kind)

    @classmethod
    def from_record(cls, record: StageRecord) -> LoadProfile:
        """The profile that a finished ``profile_load`` stage left behind."""
        return cls(record.table("requests"), record.facts["source"], record.facts["kind"])

    @property
    def span_s(self) -> float:
        """From the first request to the last."""
        return float(self.requests["start_s"].iloc[-1])

    @property
    def rate_per_s(self) -> float:
        """Requests after the first one over the time they took to come."""
        return (len(self.requests) - 1) / self.span_s

    @property
    def gap_cv(self) -> float:
        """Standard deviation of the gaps between requests over their mean; 1 for Poisson."""
        gaps_s = np.diff(self.requests["start_s"].to_numpy())
        return float(gaps_s.std() / gaps_s.mean())

    def rate_windows(self, window_s: float) -> pd.DataFrame:
        """Columns start_s, class, requests, rate_per_s: one row a window and class.

        The last window is shorter where the span is no multiple of ``window_s``; its rate
        counts its own length. Windows without a request are there, with 0.
        """
        count = max(1, int(np.ceil(self.span_s / window_s)))
        starts_s = np.arange(count) * window_s
        lengths_s = np.minimum(window_s, self.span_s - starts_s)
        number = np.minimum(self.requests["start_s"] // window_s, count - 1).astype(int)
        counts = (
            self.requests.groupby([number.rename("number"), "class"])
            .size()
            .unstack(fill_value=0)
            .reindex(range(count), fill_value=0)
        )
        parts = [
            pd.DataFrame(
                {
                    "start_s": starts_s,
                    "class": name,
                    "requests": counts[name].to_numpy(),
                    "rate_per_s": counts[name].to_numpy() / lengths_s,
                }
            )
            for name in counts.columns
        ]
        return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class LengthLimits:
    """The longest prompt and output, in tokens, that the server under test can take."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class PlannedRequest:
    """intended_s: when an open-loop client sends it, from the start of the replay.
    cut: the trace's prompt or output was longer than the limits."""

    id: int
    intended_s: float
    prompt_tokens: int
    output_tokens: int
    class_: str
    cut: bool


def replay_schedule(
    profile: LoadProfile,
    duration_s: float,
    speedup: float,
    seed: int,
    limits: LengthLimits,
) -> list[PlannedRequest]:
    """A piece of the profile, with its own times, to be sent in ``duration_s``.

    speedup: 2 sends the requests twice as fast, so the piece is ``duration_s * speedup`` long.
    The profile is taken as a ring: a piece that runs over the end goes on at the start. Of
    :data:`CANDIDATES` random pieces the one whose number of requests is nearest to the
    profile's mean rate is taken, so that a short replay of a bursty trace is neither empty
    nor all burst; the order of gaps within it is the trace's own.

    Raises ConfigError when no request falls into the replay, or more than MOST_REQUESTS do.
    """
    times_s = profile.requests["start_s"].to_numpy()
    # The ring closes with one mean gap between the last request and the first.
    period_s = len(times_s) / profile.rate_per_s
    piece_s = duration_s * speedup
    if (expected := piece_s * profile.rate_per_s) > MOST_REQUESTS:
        raise ConfigError(
            f"a replay of {duration_s:g} s at speedup {speedup:g} has {expected:.3g} requests",
            allowed=f"{MOST_REQUESTS}",
            next_step="lower deploy_rollback.duration_s or deploy_rollback.speedup",
        )
    begins_s = np.random.default_rng(seed).uniform(0.0, period_s, CANDIDATES)
    counts = _upto(times_s, period_s, begins_s + piece_s) - _upto(times_s, period_s, begins_s)
    begin_s = begins_s[np.argmin(np.abs(counts - piece_s * profile.rate_per_s))]
    first = int(_upto(times_s, period_s, begin_s))
    last = int(_upto(times_s, period_s, begin_s + piece_s))
    if first == last:
        raise ConfigError(
            f"no request falls into a replay of {duration_s:g} s at speedup {speedup:g}; "
            f"{profile.source} has {profile.rate_per_s:.3g} requests/s",
            allowed="a replay with at least one request",
            next_step="raise deploy_rollback.duration_s or deploy_rollback.speedup",
        )
    turns, rows = np.divmod(np.arange(first, last), len(times_s))
    chosen = profile.requests.iloc[rows]
    intended_s = np.maximum(times_s[rows] + turns * period_s - begin_s, 0.0) / speedup
    prompt, output = chosen["prompt_tokens"].to_numpy(), chosen["output_tokens"].to_numpy()
    cut = (prompt > limits.prompt_tokens) | (output > limits.output_tokens)
    return [
        PlannedRequest(number, float(at), int(p), int(o), str(name), bool(c))
        for number, (at, p, o, name, c) in enumerate(
            zip(
                intended_s,
                np.minimum(prompt, limits.prompt_tokens),
                np.minimum(output, limits.output_tokens),
                chosen["class"],
                cut,
                strict=True,
            )
        )
    ]


def _upto(times_s: np.ndarray, period_s: float, until_s: np.ndarray | float) -> np.ndarray:
    """How many requests of the endless ring come before each of ``until_s``."""
    turns, rest_s = np.divmod(until_s, period_s)
    return (turns * len(times_s) + np.searchsorted(times_s, rest_s, side="left")).astype(int)
