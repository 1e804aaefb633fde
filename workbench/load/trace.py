"""A trace file read in one streaming pass: requests in order, into a store, and what was said.

Bytes are read ahead and digested by a thread (:mod:`.blocks`), become columns in another
(:mod:`.rows`), times
(:mod:`.clock`) and requests (:mod:`.requests`), are put in order (:mod:`.order`) and written
(:mod:`.store`). Memory holds some blocks and the requests of ``reorder_s`` seconds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from workbench.errors import ConfigError
from workbench.load.blocks import TraceFile, prefetched
from workbench.load.clock import TraceClock
from workbench.load.faults import Faults
from workbench.load.formats import empty, layout_of
from workbench.load.order import Order
from workbench.load.requests import CLASSES, RequestReader
from workbench.load.rows import rows_of
from workbench.load.store import Store, StoreWriter
from workbench.paths import shown
from workbench.pilot.sections.profile_load import ProfileLoad
from workbench.wording.counts import number_of

_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Of stores that no one named; removed when the process ends."""
MOST_FAILED = 0.5
"""Share of failed requests beyond which the fields are not what they were taken for."""


@dataclass(frozen=True)
class Trace:
    """Requests and where they come from.

    kind: ``measured`` for a log, ``assumed`` for a declared stand-in, ``modelled`` for requests
    drawn from a profile. origin_s: Unix time of the first request; None where the trace counts
    from 0. notes: what a reader must know. rows, seconds: lines read, and the time it took.
    failed: how -> requests left out. sha256: of the file.
    """

    store: Store
    source: str
    kind: Literal["measured", "assumed", "modelled"]
    notes: tuple[str, ...] = ()
    origin_s: float | None = None
    time_zone: str | None = None
    format: str = ""
    rows: int = 0
    failed: dict[str, int] | None = None
    bad_lines: int = 0
    sha256: str | None = None
    seconds: float = 0.0
    prefix_reuse: float | None = None
    whole_seconds: bool = False

    @property
    def requests(self) -> pd.DataFrame:
        """All requests at once (see :mod:`.store`)."""
        return self.store.frame()


def read_trace(
    path: str | Path,
    section: ProfileLoad | None = None,
    store: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trace:
    """The requests of a trace file, written to ``store`` (a Parquet file).

    section: the fields of a pilot's ``profile_load`` that say how; None takes their defaults.
    store: None takes a temporary file, which lasts as long as the process.
    progress: is told bytes read and bytes in all.
    Raises ConfigError with file and line when the file cannot be read, is in no known format, has
    more bad lines than ``max_bad_share``, or counts time in a way that only its owner can tell.

    >>> from pathlib import Path
    >>> from workbench.api import read_trace
    >>> _ = Path("log.csv").write_text(
    ...     "TIMESTAMP,ContextTokens,GeneratedTokens\\n"
    ...     "2026-11-28 10:00:00.0,120,30\\n"
    ...     "2026-11-28 10:00:02.5,80,700\\n")
    >>> read_trace("log.csv").requests[["start_s", "prompt_tokens", "output_tokens"]]
       start_s  prompt_tokens  output_tokens
    0      0.0            120             30
    1      2.5             80            700
    """
    path, section = Path(path), section or ProfileLoad()
    store = store or _temporary()
    began = time.perf_counter()
    file = TraceFile(path, lambda done: progress(done, file.size_bytes))
    layout = layout_of(file, section)
    faults = Faults(path, section.max_bad_share)
    clock = TraceClock(path, section, layout)
    reader = RequestReader(layout, section, clock, faults)
    order = Order(path, section.reorder_s, faults, lambda: clock.naive and clock.absolute)
    whole_seconds = True
    with StoreWriter(store, section.interactive_max_output_tokens) as writer:
        for rows in prefetched(rows_of(file, layout, faults)):
            batch, lines = reader.read(rows)
            whole_seconds &= not (batch["start_s"] % 1).any()
            for ready in order.push(batch, lines):
                writer.write(ready)
            faults.check()
        for ready in order.finish():
            writer.write(ready)
    faults.check(final=True)
    _require_requests(path, reader, writer, faults, order)
    found = Store(store)
    origin_s = clock.base_s + writer.first_s if clock.absolute else None
    trace = Trace(
        found,
        path.name,
        "measured",
        origin_s=origin_s,
        time_zone=section.time_zone,
        format=layout.name,
        rows=faults.lines,
        failed=dict(reader.failed),
        bad_lines=faults.count,
        sha256=file.sha256,
        seconds=time.perf_counter() - began,
        prefix_reuse=_prefix_reuse(reader),
        whole_seconds=whole_seconds,
    )
    notes = _notes(reader, writer, faults, order, clock, whole_seconds, layout.name)
    return Trace(**{**vars(trace), "notes": tuple(notes)})


def _temporary() -> Path:
    _folders.append(tempfile.TemporaryDirectory(prefix="workbench-trace-"))
    return Path(_folders[-1].name) / "requests.parquet"


def _require_requests(
    path: Path, reader: RequestReader, writer: StoreWriter, faults: Faults, order: Order
) -> None:
    failed = sum(reader.failed.values())
    if not faults.lines:
        how = f"has {number_of(faults.others, 'line')}, and none fits profile_load.pattern"
        raise empty(path, how if faults.others else "has a header and no requests")
    if failed > MOST_FAILED * faults.lines:
        how = ", ".join(f"{name}: {count}" for name, count in reader.failed.most_common(3))
        raise ConfigError(
            f"{shown(path)}: {failed} of {number_of(faults.lines, 'request')} failed or have no "
            f"token counts ({how})",
            allowed="a trace whose requests were mostly served, with their token counts",
            next_step="see whether profile_load.columns names the right fields, or log the usage",
        )
    if writer.requests < 2 or order.latest_s <= (writer.first_s or 0.0):
        raise ConfigError(
            f"{shown(path)}: {number_of(writer.requests, 'request')} with tokens, all at one time"
            if writer.requests
            else f"{shown(path)}: 0 requests with tokens",
            allowed="requests at two or more different times",
            next_step="give a longer trace, or leave profile_load.trace out for a declared load",
        )


def _prefix_reuse(reader: RequestReader) -> float | None:
    found = reader.prefixes
    return found.seen / found.blocks if found and found.blocks and not found.full else None


def _notes(
    reader: RequestReader,
    writer: StoreWriter,
    faults: Faults,
    order: Order,
    clock: TraceClock,
    whole_seconds: bool,
    format_: str,
) -> list[str]:
    notes = [*clock.notes, *faults.notes]
    if faults.others:
        notes.append(
            f"{number_of(faults.others, 'line does', 'lines do')} not fit the pattern; they were "
            "passed over"
        )
    if faults.count:
        notes.append(faults.note())
    span_s = order.latest_s - writer.first_s
    if reader.failed:
        failed = sum(reader.failed.values())
        how = ", ".join(f"{name}: {count}" for name, count in reader.failed.most_common(5))
        everything = (writer.requests + failed + reader.bare - 1) / max(
            reader.span[1] - reader.span[0], 1e-9
        )
        notes.append(
            f"{failed} of {number_of(faults.lines, 'request')} failed ({how}) and are left out: "
            f"the rate of {(writer.requests - 1) / span_s:.3g}/s is that of the requests that were "
            f"answered; with the failed ones it is {everything:.3g}/s"
        )
    if reader.bare:
        notes.append(
            f"left out: {reader.bare} of {number_of(faults.lines, 'request')}, which had no prompt "
            "or no output tokens"
        )
    if reader.cached:
        notes.append(
            f"{number_of(reader.cached, 'prompt')} had tokens from a cache beside their own; they "
            "are counted in"
        )
    if order.moved:
        notes.append(
            f"{number_of(order.moved, 'line')} stood out of order, by up to {order.most_s:.3g} s; "
            "they were put in order"
        )
    if reader.unknown_classes:
        names = ", ".join(f"{n!r}: {c}" for n, c in reader.unknown_classes.most_common(3))
        notes.append(
            f"classes other than {' and '.join(CLASSES)} ({names}) are told by output length"
        )
    if whole_seconds:
        notes.append("the trace's times are whole seconds: it says nothing about shorter gaps")
    elif writer.repeats:
        notes.append(
            f"{number_of(writer.repeats, 'request repeats', 'requests repeat')} the one before in "
            "time and lengths: was a part of the log written twice?"
        )
    if clock.unit == "ms" and clock.fractions_of_ms and not clock.notes:
        notes.append("milliseconds with fractions; were they seconds, time_unit would say so")
    if clock.naive and format_ != "azure":
        notes.append("the dates have no offset and are taken for UTC; time_zone says otherwise")
    return notes
