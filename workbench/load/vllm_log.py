r"""Requests in the log of vLLM's server: the line of a request and the line of its answer.

``vllm serve --enable-log-requests --enable-log-outputs`` writes, with the level DEBUG in newer
versions,

    INFO 11-28 10:00:00 [logger.py:41] Received request chatcmpl-1: prompt: '...', params: \
SamplingParams(...), prompt_token_ids: [1, 2, 3], ...
    INFO 11-28 10:00:02 [logger.py:71] Generated response chatcmpl-1: output: '...', \
output_token_ids: [4, 5], finish_reason: stop

A request is paired with its answer by its id; one without an answer is counted as failed. Lengths
are the numbers of ids in the two lists. The time has no year: that of the file's last change is
taken, which a note says.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from workbench.errors import ConfigError
from workbench.load.faults import Faults
from workbench.paths import shown
from workbench.wording.counts import number_of

RECEIVED = (
    r"(?P<time>\d\d-\d\d \d\d:\d\d:\d\d).*Received request (?P<id>[^ :]+):.*"
    r"prompt_token_ids: \[(?P<ids>[0-9, ]*)\]"
)
ANSWERED = (
    r"Generated response (?P<id>[^ :]+)(?P<how> \([a-z ]+\))?:.*"
    r"output_token_ids: \[(?P<ids>[0-9, ]*)\]"
)
ENABLE = "serve with --enable-log-requests --enable-log-outputs --max-log-len unset, level DEBUG"


class VllmLog:
    """Pairs the lines as they come; what still waits for its answer is kept."""

    def __init__(self, path: Path, faults: Faults) -> None:
        self._path, self._faults = path, faults
        self._year = time.localtime(path.stat().st_mtime).tm_year
        self._waiting = pd.DataFrame({"time": [], "prompt": [], "line": []}, dtype=object)
        self._answers = 0
        self._received = 0

    def rows(self, lines: pa.Array, first_line: int) -> tuple[dict[str, pa.Array], np.ndarray]:
        """Columns time, prompt and output of the requests answered here, and their lines."""
        received = _found(lines, RECEIVED, first_line)
        received["time"] = f"{self._year}-" + received["time"].astype(str)
        answered = _found(lines, ANSWERED, first_line)
        answered = answered[~answered["how"].fillna("").str.contains("delta")]
        self._received += len(received)
        self._answers += len(answered)
        received = received.rename(columns={"tokens": "prompt"}).set_index("id")
        waiting = pd.concat([self._waiting, received[["time", "prompt", "line"]]])
        waiting = waiting[~waiting.index.duplicated(keep="last")]
        answered = answered.drop_duplicates("id", keep="last").set_index("id")["tokens"]
        both = waiting.join(answered.rename("output"), how="inner")
        self._waiting = waiting.drop(both.index)
        both = both.sort_values("line")
        self._faults.lines += len(both)
        columns = {
            "time": pa.array(both["time"].astype(str).tolist(), pa.string()),
            "prompt": pa.array(both["prompt"].astype(float).to_numpy(), pa.float64()),
            "output": pa.array(both["output"].astype(float).to_numpy(), pa.float64()),
        }
        return columns, both["line"].to_numpy(int)

    def close(self) -> None:
        """ConfigError when the log has no lengths; says how many requests had no answer."""
        if not self._received or not self._answers:
            what = "requests" if not self._received else "answers"
            raise ConfigError(
                f"{shown(self._path)}: the log has no {what} with token ids",
                allowed="lines 'Received request ... prompt_token_ids: [...]' and 'Generated "
                "response ... output_token_ids: [...]'",
                next_step=ENABLE,
            )
        self._faults.notes.append(f"the log's times have no year; {self._year} was taken")
        if len(self._waiting):
            self._faults.notes.append(
                f"{len(self._waiting)} of {number_of(self._received, 'request')} have no answer in "
                "the log and are left out"
            )


def _found(lines: pa.Array, pattern: str, first_line: int) -> pd.DataFrame:
    """The groups of the lines that fit, their numbers, and how many ids the list has."""
    found = pc.extract_regex(lines, pattern)
    fits = found.is_valid()
    frame = found.filter(fits).to_pandas()
    groups = pd.DataFrame(frame.tolist(), columns=[f.name for f in found.type])
    groups["line"] = first_line + np.flatnonzero(fits.to_numpy(zero_copy_only=False))
    ids = groups.pop("ids").astype(str).str.strip()
    groups["tokens"] = np.where(ids == "", 0, ids.str.count(",") + 1)
    return groups
