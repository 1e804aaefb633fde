"""What a row says about its request: its lengths, its class, whose it is, whether it failed.

A failed request (a status of 400 or more, an error, no usage) loaded the service in a way that no
trace tells; it is left out and counted. A row whose lengths cannot be read is a bad line.

Prompts count with what came out of a cache. Anthropic's ``input_tokens`` leave that out, and so do
gateways that translate its usage; OpenAI's and LiteLLM's ``prompt_tokens`` hold it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from workbench.load.clock import ALLOWED, TraceClock, numbers
from workbench.load.faults import Faults
from workbench.load.formats import CACHED_WITHIN, Layout
from workbench.load.order import Batch
from workbench.load.rows import Rows
from workbench.pilot.sections.profile_load import ProfileLoad

CLASSES = ("interactive", "batch")
LONGEST = 2**27
"""Tokens of one request; more is no length but a broken field."""
FAILURES = {
    *("failure", "failed", "fail", "error", "errored", "timeout", "timed_out", "rejected"),
    *("cancelled", "canceled", "aborted", "incomplete", "rate_limited"),
}
MOST_BLOCKS = 2**27
"""Prefix blocks that are told apart; ids beyond it end the count."""


class RequestReader:
    """Rows to batches of requests; counts what it leaves out.

    failed: how -> requests. bare: requests without prompt or output tokens. cached: prompts to
    which tokens from a cache were added.
    """

    def __init__(
        self, layout: Layout, section: ProfileLoad, clock: TraceClock, faults: Faults
    ) -> None:
        self._layout, self._section, self._clock, self._faults = layout, section, clock, faults
        self.failed: Counter[str] = Counter()
        self.bare = 0
        self.cached = 0
        self.requests = 0
        self.unknown_classes: Counter[str] = Counter()
        self.prefixes = PrefixReuse() if "hashes" in layout.fields else None
        self.span = [np.inf, -np.inf]
        self._caches_beside: bool | None = None

    def read(self, rows: Rows) -> tuple[Batch, Callable[[], np.ndarray]]:
        """The requests of these rows, in their order; and their line numbers, on demand."""
        time_s = self._times(rows)
        prompt, prompt_there = self._tokens(rows, "prompt")
        output, output_there = self._tokens(rows, "output")
        failed = self._failed(rows, ~prompt_there & ~output_there)
        times_bad = ~np.isfinite(time_s)
        prompt_bad = ~failed & ~times_bad & ~_is_length(prompt)
        output_bad = ~failed & ~times_bad & ~prompt_bad & ~_is_length(output)
        self._say_bad(rows, times_bad, "time", ALLOWED, "is not a time")
        negative = ~times_bad & (time_s < 0) & (not self._clock.absolute)
        self._say_bad(rows, negative, "time", ALLOWED, "is negative")
        whole = "a whole number of tokens, 0 or more"
        self._say_bad(rows, prompt_bad, "prompt", whole, "is no number of tokens")
        self._say_bad(rows, output_bad, "output", whole, "is no number of tokens")
        good = ~(failed | times_bad | negative | prompt_bad | output_bad)
        with np.errstate(invalid="ignore"):
            bare = good & ((prompt <= 0) | (output <= 0))
        self.bare += int(bare.sum())
        seen = time_s[(good | failed) & np.isfinite(time_s)]
        if len(seen):
            self.span = [min(self.span[0], seen.min()), max(self.span[1], seen.max())]
        keep = good & ~bare
        self.requests += int(keep.sum())
        batch: Batch = {
            "start_s": time_s[keep],
            "prompt_tokens": prompt[keep].astype(np.int32),
            "output_tokens": output[keep].astype(np.int32),
            "class": self._classes(rows, keep),
        }
        for name in ("tenant", "session", "chat", "parent"):
            if name in self._layout.fields:
                values = rows.columns[self._layout.fields[name][0]]
                batch[name] = _identities(values.filter(pa.array(keep)))
        if (duration := self._durations(rows, time_s)) is not None:
            batch["duration_s"] = duration[keep].astype(np.float32)
        if self.prefixes is not None:
            lists = rows.columns[self._layout.fields["hashes"][0]]
            self.prefixes.add(lists.filter(pa.array(keep)))
        return batch, lambda: _numbers_of(rows)[keep]

    def _times(self, rows: Rows) -> np.ndarray:
        found = np.full(rows.count, np.nan)
        for name in self._layout.fields["time"]:
            rest = np.isnan(found)
            if not rest.any():
                break
            values = rows.columns[name]
            found[rest] = self._clock.seconds(
                values if rest.all() else values.filter(pa.array(rest))
            )
        return found

    def _tokens(self, rows: Rows, role: str) -> tuple[np.ndarray, np.ndarray]:
        """The numbers, NaN where they are none; and whether anything stands there at all."""
        found = np.full(rows.count, np.nan)
        there = np.zeros(rows.count, bool)
        for name in self._layout.fields[role]:
            values = rows.columns[name]
            has = _has_text(values) & ~there
            if not has.any():
                continue
            tokens = numbers(values, self._section.decimal)
            if role == "prompt":
                tokens = self._with_cached(rows, name, tokens)
            found = np.where(has, tokens, found)
            there |= has
        return found, there

    def _with_cached(self, rows: Rows, name: str, tokens: np.ndarray) -> np.ndarray:
        place = name.rpartition(".")[0]
        dot = f"{place}." if place else ""
        beside = self._layout.cached_beside(name)
        within = [each for each in self._layout.names
                  if each.startswith(dot) and each.removeprefix(dot) in CACHED_WITHIN]  # fmt: skip
        others = [each for each in self._layout.fields.get("cached", ())
                  if each.startswith(dot) and each not in beside]  # fmt: skip
        extra = sum((np.nan_to_num(numbers(rows.columns[each])) for each in beside),
                    np.zeros(len(tokens)))  # fmt: skip
        inside = sum((np.nan_to_num(numbers(rows.columns[each])) for each in (*within, *others)),
                     np.zeros(len(tokens)))  # fmt: skip
        with np.errstate(invalid="ignore"):
            left_out = inside > tokens
        if inside.any():
            if self._caches_beside is None:
                self._caches_beside = bool(left_out.sum() > 0.1 * (inside > 0).sum())
            if not beside:
                extra = np.where(left_out | self._caches_beside, inside, extra)
        self.cached += int(((extra > 0) & np.isfinite(tokens)).sum())
        return tokens + extra

    def _failed(self, rows: Rows, no_usage: np.ndarray) -> np.ndarray:
        failed = np.zeros(rows.count, bool)
        for name in self._layout.fields.get("status", ()):
            values = rows.columns[name]
            bad = _is_failure(values) & ~failed
            if bad.any():
                texts = _as_texts(values.filter(pa.array(bad))).to_pylist()
                self.failed.update(f"{name} {text.removesuffix('.0')}" for text in texts)
            failed |= bad
        for name in self._layout.fields.get("error", ()):
            bad = _is_error(rows.columns[name]) & ~failed
            if bad.any():
                self.failed.update(self._error_names(rows, bad))
            failed |= bad
        # Half a usage is a bad line, none at all the mark of a request that was not served.
        none = no_usage & ~failed
        if none.any():
            self.failed["no usage"] += int(none.sum())
        return failed | none

    def _error_names(self, rows: Rows, bad: np.ndarray) -> list[str]:
        for name in self._layout.fields.get("code", ()):
            codes = rows.columns[name].filter(pa.array(bad))
            if codes.null_count < len(codes):
                texts = _as_texts(codes).to_pylist()
                return [f"error {(text or '').removesuffix('.0')}".rstrip() for text in texts]
        return ["error"] * int(bad.sum())

    def _say_bad(self, rows: Rows, bad: np.ndarray, role: str, allowed: str, how: str) -> None:
        if not bad.any():
            return
        first = int(np.argmax(bad))
        name = self._layout.fields[role][0]
        values = [rows.columns[each][first].as_py() for each in self._layout.fields[role]]
        value = next((each for each in values if each is not None), None)
        fault = f"{name} {how}"
        line = int(_numbers_of(rows)[first])
        if rows.unfinished and first == rows.count - 1:
            fault = f"the last line is cut off: {fault}"
        text = "missing" if value is None else f"{name} is {value!r}"
        self._faults.add(fault, int(bad.sum()), line, text, allowed)

    def _classes(self, rows: Rows, keep: np.ndarray) -> np.ndarray:
        """Codes: 0 where the trace does not say, else 1 + the position in CLASSES."""
        codes = np.zeros(int(keep.sum()), np.int8)
        if "class" not in self._layout.fields:
            return codes
        values = rows.columns[self._layout.fields["class"][0]].filter(pa.array(keep))
        texts = pc.fill_null(_as_texts(values), "").dictionary_encode()
        known = {"": 0, **{name: 1 + at for at, name in enumerate(CLASSES)}}
        names = [text.strip().lower() for text in texts.dictionary.to_pylist()]
        indices = texts.indices.to_numpy(zero_copy_only=False)
        counts = np.bincount(indices, minlength=len(names))
        for name, count in zip(names, counts, strict=True):
            if name not in known:
                self.unknown_classes[name] += int(count)
        return np.array([known.get(name, 0) for name in names], np.int8)[indices]

    def _durations(self, rows: Rows, time_s: np.ndarray) -> np.ndarray | None:
        if "duration" in self._layout.fields:
            name = self._layout.fields["duration"][0]
            scale = 1e-3 if name.lower().endswith(("_ms", "ms")) else 1.0
            return scale * numbers(rows.columns[name], self._section.decimal)
        if "end" in self._layout.fields:
            name = self._layout.fields["end"][0]
            return self._clock.seconds(rows.columns[name]) - time_s
        return None


class PrefixReuse:
    """How many blocks of the prompts were seen before: what a prefix cache of any size could save.

    blocks, seen: so far. full: an id was too large to be told apart, so the count ended.
    """

    def __init__(self) -> None:
        self._known = np.zeros(2**16, bool)
        self.blocks = self.seen = 0
        self.full = False

    def add(self, lists: pa.Array) -> None:
        if self.full or not pa.types.is_list(lists.type):
            return
        ids = lists.flatten().drop_null().to_numpy(zero_copy_only=False)
        if not len(ids):
            return
        if ids.min() < 0 or ids.max() >= MOST_BLOCKS:
            self.full = True
            return
        if ids.max() >= len(self._known):
            larger = np.zeros(2 * int(ids.max()) + 1, bool)
            larger[: len(self._known)] = self._known
            self._known = larger
        new = np.unique(ids)
        fresh = int((~self._known[new]).sum())
        self._known[new] = True
        self.blocks += len(ids)
        self.seen += len(ids) - fresh


def _numbers_of(rows: Rows) -> np.ndarray:
    """One line number a row, even where a line holds two objects."""
    found = rows.lines()
    return found if len(found) == rows.count else np.resize(found, rows.count)


def _is_length(tokens: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (tokens >= 0) & (tokens == np.floor(tokens)) & (tokens < LONGEST)


def _as_texts(values: pa.Array) -> pa.Array:
    """The values as texts; lists and objects, which no such column should hold, as written."""
    if pa.types.is_nested(values.type):
        return pa.array([None if v is None else str(v) for v in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _has_text(values: pa.Array) -> np.ndarray:
    """Whether anything stands there: no null, no empty text."""
    valid = values.is_valid()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        valid = pc.and_(valid, pc.fill_null(pc.not_equal(values, ""), False))
    return valid.to_numpy(zero_copy_only=False).copy()


def _is_failure(values: pa.Array) -> np.ndarray:
    codes = numbers(values)
    with np.errstate(invalid="ignore"):
        failed = codes >= 400
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        words = pc.is_in(pc.utf8_lower(values), pa.array(sorted(FAILURES), values.type))
        failed = failed | words.to_numpy(zero_copy_only=False)
    return failed


def _is_error(values: pa.Array) -> np.ndarray:
    if pa.types.is_boolean(values.type):
        return pc.fill_null(values, False).to_numpy(zero_copy_only=False).copy()
    found = _has_text(values)
    if pa.types.is_string(values.type):
        said = pc.is_in(values, pa.array(["null", "None", "none", "false", "False", "-", "0"]))
        found &= ~said.to_numpy(zero_copy_only=False)
    return found


def _identities(values: pa.Array) -> np.ndarray:
    """A number for every different value, the same in all batches; 0 for null and empty."""
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return (
            values.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        )
    coded = pc.fill_null(_as_texts(values), "").dictionary_encode()
    names = np.array(coded.dictionary.to_pylist(), object)
    hashed = pd.util.hash_array(names).view(np.int64) if len(names) else np.array([], np.int64)
    hashed = np.where(names == "", 0, hashed)
    return hashed[coded.indices.to_numpy(zero_copy_only=False)] if len(hashed) else hashed
