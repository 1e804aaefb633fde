"""A request trace as one table, whatever format it was logged in.

Columns: ``start_s`` (float, the first request is at 0), ``prompt_tokens`` and
``output_tokens`` (int), ``class`` (``interactive``, ``batch``, or empty where the trace does
not say). Rows are in the order of their times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from workbench.errors import ConfigError
from workbench.paths import shown

CLASSES = ("interactive", "batch")


@dataclass(frozen=True)
class Trace:
    """Requests and where they come from.

    kind: ``measured`` for a log, ``assumed`` for a declared stand-in.
    notes: what a reader must know about the trace.
    """

    requests: pd.DataFrame
    source: str
    kind: Literal["measured", "assumed"]
    notes: tuple[str, ...] = ()


class Row(NamedTuple):
    """One request as it stands in the log; ``line`` is the line it ends on."""

    line: int
    time: str
    prompt: str
    output: str
    class_: str


@dataclass
class Log:
    """The rows of a log as text, and what its error messages need.

    names: what the log calls time, prompt tokens and output tokens.
    last_line: number of the file's last line. unfinished: that line has no line break, so it
    may be cut off.
    """

    path: Path
    names: tuple[str, str, str]
    last_line: int
    unfinished: bool
    rows: list[Row] = field(default_factory=list)

    def error(self, line: int, got: str, allowed: str, next_step: str = "") -> ConfigError:
        """The error about one line; says so when that is a last line that was cut off."""
        cut = self.unfinished and line >= self.last_line
        if cut:
            got = f"the last line is cut off: {got}"
            next_step = "copy the whole file again, or remove its last line"
        return ConfigError(
            f"{shown(self.path)}:{line}: {got}",
            allowed=allowed,
            next_step=next_step or "correct or remove that line; nothing was started",
        )


def as_trace(log: Log, seconds: Callable[[pd.Series], np.ndarray], times: str) -> Trace:
    """Check every row and make the table.

    seconds: turns the time texts into seconds, NaN where a text is no time.
    times: the times that are allowed, for the error message.
    Raises ConfigError with file and line for the first row at fault.
    """
    time_s = _times(log, seconds, times)
    prompt = _whole_numbers(log, [row.prompt for row in log.rows], log.names[1])
    output = _whole_numbers(log, [row.output for row in log.rows], log.names[2])
    classes = _classes(log)
    # A refused or failed request is logged with no tokens; it loaded no model.
    served = (prompt > 0) & (output > 0)
    table = {
        "start_s": time_s,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "class": classes,
    }
    requests = pd.DataFrame(table)[served].reset_index(drop=True)
    if requests["start_s"].nunique() < 2:
        raise ConfigError(
            f"{shown(log.path)}: {len(requests)} requests with tokens, "
            f"at {requests['start_s'].nunique()} different times",
            allowed="requests at two or more different times",
            next_step="give a longer trace, or leave profile_load.trace out for a declared load",
        )
    requests["start_s"] -= requests["start_s"].iloc[0]
    notes = []
    if dropped := int((~served).sum()):
        notes.append(f"left out: {dropped} of {len(log.rows)} requests, which had no tokens")
    if not (time_s % 1).any():
        notes.append("the trace's times are whole seconds: it says nothing about shorter gaps")
    return Trace(requests, log.path.name, "measured", tuple(notes))


def _times(log: Log, seconds: Callable[[pd.Series], np.ndarray], allowed: str) -> np.ndarray:
    name = log.names[0]
    time_s = seconds(pd.Series([row.time for row in log.rows], dtype="str"))
    for wrong, fault in ((~np.isfinite(time_s), "is not a time"), (time_s < 0, "is negative")):
        if wrong.any():
            row = log.rows[int(np.argmax(wrong))]
            raise log.error(row.line, f"{name} {row.time!r} {fault}", allowed)
    back = np.diff(time_s) < 0
    if back.any():
        after = int(np.argmax(back)) + 1
        raise log.error(
            log.rows[after].line,
            f"{name} goes back by {time_s[after - 1] - time_s[after]:.6g} s",
            "rows in the order of their times",
            "sort the rows by time (one log per file) and start again",
        )
    return time_s


def _whole_numbers(log: Log, texts: list[str], name: str) -> np.ndarray:
    values = pd.to_numeric(pd.Series(texts, dtype="str"), errors="coerce").to_numpy(float)
    # 2**31 tokens in one request is no length but a broken field.
    with np.errstate(invalid="ignore"):
        good = (values >= 0) & (values == np.floor(values)) & (values < 2**31)
    if not good.all():
        at = int(np.argmin(good))
        raise log.error(
            log.rows[at].line, f"{name} is {texts[at]!r}", "a whole number of tokens, 0 or more"
        )
    return values.astype(np.int64)


def _classes(log: Log) -> list[str]:
    for row in log.rows:
        if row.class_ and row.class_ not in CLASSES:
            raise log.error(row.line, f"class is {row.class_!r}", f"{', '.join(CLASSES)}, or empty")
    return [row.class_ for row in log.rows]
