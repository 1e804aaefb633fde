"""What "representative" means for this pilot: the requests, what they are like, and a replay.

A profile is three files: ``requests.parquet`` (:mod:`.store`), ``grid.parquet`` (counts in fine
windows, :class:`.summary.Grid`) and ``profile.json`` (:mod:`.summary`), the small one that can be
shared. Later stages read these, never the trace.

For a replay: :meth:`LoadProfile.piece` and :meth:`.piece.Piece.schedule`; what the models cannot
hold: :meth:`LoadProfile.cut_share`; single requests: :meth:`LoadProfile.sample`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ConfigError
from workbench.files import read_json, replacing, write_json
from workbench.load.generate import generated
from workbench.load.order import Batch
from workbench.load.piece import LengthLimits, Piece, PieceKind, choose_piece
from workbench.load.requests import CLASSES
from workbench.load.store import Store, StoreWriter
from workbench.load.summary import VERSION, Grid, summarise
from workbench.load.trace import Trace
from workbench.paths import shown
from workbench.records.stage_record import StageRecord

MOST_ORDERED = 1_000_000
"""Requests that an interval is made from; of more, every k-th: still in order, and enough."""
REQUESTS, GRID, SUMMARY = "requests.parquet", "grid.parquet", "profile.json"


@dataclass(frozen=True)
class LoadProfile:
    """summary: what stands in ``profile.json``. folder: of the profile's three files.

    >>> from pathlib import Path
    >>> from workbench.api import LoadProfile, read_trace
    >>> _ = Path("log.csv").write_text(
    ...     "Timestamp,Request tokens,Response tokens\\n0,90,20\\n1,40,30\\n4,70,900\\n")
    >>> profile = LoadProfile.of(read_trace("log.csv"))
    >>> profile.span_s, profile.rate_per_s, round(profile.gap_cv, 6)
    (4.0, 0.5, 0.5)
    """

    folder: Path
    summary: dict[str, Any]

    @classmethod
    def of(cls, trace: Trace, window_s: float = 60.0, folder: Path | None = None) -> LoadProfile:
        """The profile of a trace whose store lies in ``folder``; the other files are written.

        window_s: width of the windows of the rate curve. folder: None takes the store's.
        """
        folder = folder or trace.store.path.parent
        summary, grid = summarise(trace, window_s)
        with replacing(folder / GRID) as partial:
            frame = grid.frame()
            frame.attrs = {}
            frame.to_parquet(partial, index=False)
        write_json(folder / SUMMARY, {**summary, "grid_width_s": grid.width_s})
        return cls.at(folder)

    @classmethod
    def at(cls, folder: Path) -> LoadProfile:
        """The profile whose files lie in ``folder``."""
        return cls(folder, read_json(folder / SUMMARY))

    @classmethod
    def from_record(cls, record: StageRecord) -> LoadProfile:
        """The profile that a finished ``profile_load`` stage left behind."""
        return cls.at(record.artefact("profile").parent)

    @property
    def store(self) -> Store:
        return Store(self.folder / REQUESTS)

    @property
    def source(self) -> str:
        return self.summary["source"]

    @property
    def kind(self) -> str:
        """``measured``, ``assumed`` (declared) or ``modelled`` (drawn from a profile)."""
        return self.summary["kind"]

    @property
    def span_s(self) -> float:
        """From the first request to the last."""
        return self.summary["span_s"]

    @property
    def rate_per_s(self) -> float:
        """Requests after the first one over the time they took to come."""
        return self.summary["rate_per_s"]

    @property
    def gap_cv(self) -> float:
        """Standard deviation of the gaps between requests over their mean; 1 for Poisson."""
        return self.summary["gaps"]["cv"]

    @property
    def longest_request(self) -> int:
        """Prompt and output tokens of the longest request."""
        return self.summary["longest_request"]

    @cached_property
    def grid(self) -> Grid:
        frame = pd.read_parquet(self.folder / GRID)
        counts = frame[list(CLASSES)].to_numpy()
        return Grid(self.summary["grid_width_s"], counts, frame["gap_squares"].to_numpy())

    @property
    def requests(self) -> pd.DataFrame:
        """All requests at once (see :mod:`.store`); of a long trace take :meth:`sample`."""
        return self.store.frame()

    def sample(self, count: int, seed: int) -> pd.DataFrame:
        """``count`` different requests at random, or all of them, in the order of their times."""
        return self.store.sample(count, seed)

    def thinned(self, most: int) -> pd.DataFrame:
        """Every k-th request, at most ``most`` of them, in the order of their times."""
        every = -(-self.summary["requests"] // most)
        columns = ["start_s", "prompt_tokens", "output_tokens", "class"]
        parts, skip = [], 0
        for batch in self.store.batches(columns):
            parts.append({name: values[skip::every] for name, values in batch.items()})
            skip = (skip - len(batch["start_s"])) % every
        joined = {name: np.concatenate([part[name] for part in parts]) for name in columns}
        joined["class"] = np.array(CLASSES, object)[joined["class"]]
        return pd.DataFrame(joined)

    def rate_windows(self, window_s: float) -> pd.DataFrame:
        """Columns start_s, class, requests, rate_per_s: one row a window and class.

        The last window is shorter where the span is no multiple of ``window_s``; its rate
        counts its own length. Windows without a request are there, with 0.
        """
        together = max(1, round(window_s / self.grid.width_s))
        starts = np.arange(0, len(self.grid.counts), together)
        counts = np.add.reduceat(self.grid.counts, starts)
        starts_s = starts * self.grid.width_s
        ends_s = np.minimum(starts_s + together * self.grid.width_s, self.span_s)
        lengths_s = ends_s - starts_s
        if len(starts) > 1 and lengths_s[-1] <= 0:  # the last request alone, on an edge
            counts[-2] += counts[-1]
            counts, starts_s, lengths_s = counts[:-1], starts_s[:-1], lengths_s[:-1]
        parts = [
            pd.DataFrame(
                {
                    "start_s": starts_s,
                    "class": name,
                    "requests": counts[:, at],
                    "rate_per_s": counts[:, at] / lengths_s,
                }
            )
            for at, name in enumerate(CLASSES)
            if counts[:, at].any()
        ]
        return pd.concat(parts, ignore_index=True)

    def piece(
        self, kind: PieceKind, length_s: float, start_s: float = 0.0, window_s: float = 60.0
    ) -> Piece:
        """``length_s`` seconds of the load to be replayed; see :mod:`.piece`."""
        return choose_piece(
            kind,
            length_s,
            start_s,
            self.grid,
            self.span_s,
            self.gap_cv,
            window_s,
            self.store.between,
        )

    def cut_share(self, limits: LengthLimits) -> tuple[int, int]:
        """How many requests are longer than the limits, and how many there are."""
        cut = n = 0
        for batch in self.store.batches(["prompt_tokens", "output_tokens"]):
            cut += int(limits.is_cut(batch["prompt_tokens"], batch["output_tokens"]).sum())
            n += len(batch["prompt_tokens"])
        return cut, n


def read_summary(path: Path) -> dict[str, Any]:
    """A shared ``profile.json``; ConfigError when it is none."""
    try:
        summary = read_json(path)
        version = summary["version"]
        _ = (
            summary["lengths"]["count"],
            summary["operational"]["gaps"],
            summary["shape"]["counts"],
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{shown(path)}: no load profile: {type(error).__name__}: {error}",
            allowed=f"the {SUMMARY} that a profile_load stage left in its folder",
            next_step="correct profile_load.profile",
        ) from None
    if version != VERSION:
        raise ConfigError(
            f"{shown(path)}: a load profile of version {version}",
            allowed=f"version {VERSION}",
            next_step="profile the trace again with this version of the workbench",
        )
    return summary


def write_batches(
    batches: list[Batch], store: Path, most_interactive_tokens: int, each: Callable[[int], None]
) -> Store:
    """Generated or declared requests as a store; ``each`` is told how many are written."""
    done = 0
    with StoreWriter(store, most_interactive_tokens) as writer:
        for batch in batches:
            writer.write(batch)
            each(done := done + len(batch["start_s"]))
    return Store(store)


def generated_trace(
    summary: dict[str, Any], duration_s: float, scale: float, seed: int, store: Path
) -> Trace:
    """Requests drawn from a summary, as a trace of kind ``modelled`` (``assumed`` stays so)."""
    batches = generated(summary, duration_s, scale, seed)
    found = write_batches(batches, store, 2**31 - 1, lambda done: None)
    note = (
        f"the requests are drawn from the profile of {summary['source']}: {duration_s:g} s at "
        f"{scale:g} times its rate"
    )
    return Trace(
        found,
        summary["source"],
        "assumed" if summary["kind"] == "assumed" else "modelled",
        (note, *summary["notes"]),
        summary["origin_s"],
        summary["time_zone"],
        "profile",
    )
