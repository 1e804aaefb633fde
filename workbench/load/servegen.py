"""ServeGen's client data: windows of rates and lengths, from which requests are drawn.

A folder has, for each client, ``chunk-<i>-trace.csv`` (start of the window in s, requests/s, CV of
the gaps, ``Gamma`` or ``Weibull``, and two parameters; no header) and ``chunk-<i>-dataset.json``
(start of a window -> ``input_tokens`` and ``output_tokens``, each a text ``{tokens: share}``). A
window of the trace takes the lengths of the dataset's last window that does not begin after it.

The data say how requests are distributed, not which there were, so the load is *modelled*: gaps of
each client are Gamma with the window's rate and CV, whatever family its row names.

Format: github.com/alibaba/ServeGen, ``data/``.
"""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path

import numpy as np

from workbench.errors import ConfigError
from workbench.load.order import Batch
from workbench.load.store import Store, StoreWriter
from workbench.load.trace import Trace
from workbench.paths import shown
from workbench.pilot.sections.profile_load import ProfileLoad
from workbench.wording.counts import number_of

MOST_REQUESTS = 50_000_000
WINDOW_S = 600.0
"""Of the published data; a last window, or a lone one, lasts as long."""


def read_servegen(folder: Path, section: ProfileLoad, seed: int, store: Path) -> Trace:
    """Requests drawn from a folder's windows, written to ``store``.

    Raises ConfigError naming the file that is missing or wrong.
    """
    traces = sorted(folder.glob("chunk-*-trace.csv"))
    if not traces:
        raise ConfigError(
            f"{shown(folder)}: a folder without chunk-*-trace.csv",
            allowed="a trace file, or a folder of ServeGen's client data",
            next_step="correct profile_load.trace",
        )
    streams = np.random.SeedSequence(seed).spawn(len(traces))
    clients = [
        _client(path, np.random.default_rng(stream))
        for path, stream in zip(traces, streams, strict=True)
    ]
    found = {
        name: np.concatenate([client[name] for client in clients])
        for name in ("start_s", "prompt_tokens", "output_tokens")
    }
    order = np.argsort(found["start_s"], kind="stable")
    batch: Batch = {name: values[order] for name, values in found.items()}
    batch["class"] = np.zeros(len(order), np.int8)
    if len(order) < 2:
        raise ConfigError(
            f"{shown(folder)}: its windows give {number_of(len(order), 'request')}",
            allowed="two or more",
            next_step="give more of the data",
        )
    with StoreWriter(store, section.interactive_max_output_tokens) as writer:
        writer.write(batch)
    note = (
        f"the load is drawn from ServeGen's windows of {number_of(len(traces), 'client')} (gaps: "
        "Gamma with their rate and CV): it is modelled, not a log of requests"
    )
    return Trace(Store(store), folder.name, "modelled", (note,), format="servegen")


def _client(path: Path, random: np.random.Generator) -> Batch:
    windows = _windows(path)
    dataset = path.with_name(path.name.replace("-trace.csv", "-dataset.json"))
    lengths = _lengths(dataset)
    starts = sorted(lengths)
    parts: list[Batch] = []
    for number, (start_s, rate, cv) in enumerate(windows):
        after = windows[number + 1][0] if number + 1 < len(windows) else start_s + WINDOW_S
        before = [each for each in starts if each <= start_s]
        if rate <= 0 or not before:
            continue
        times = _arrivals(after - start_s, rate, max(cv, 0.01), random)
        prompt, output = lengths[before[-1]]
        parts.append(
            {
                "start_s": start_s + times,
                "prompt_tokens": random.choice(prompt[0], len(times), p=prompt[1]),
                "output_tokens": random.choice(output[0], len(times), p=output[1]),
            }
        )
    empty = {"start_s": np.array([]), "prompt_tokens": np.array([], np.int32),
             "output_tokens": np.array([], np.int32)}  # fmt: skip
    return {name: np.concatenate([empty[name], *(p[name] for p in parts)]) for name in empty}


def _arrivals(lasts_s: float, rate: float, cv: float, random: np.random.Generator) -> np.ndarray:
    expected = lasts_s * rate
    if expected > MOST_REQUESTS:
        raise ConfigError(
            f"a window of ServeGen has {number_of(expected, 'request', form='.3g')}",
            allowed=f"{MOST_REQUESTS}",
            next_step="give fewer clients",
        )
    count = int(expected + 10 * np.sqrt(expected) * max(cv, 1.0)) + 10
    gaps = random.gamma(1 / cv**2, cv**2 / rate, count)
    # A window begins somewhere within a gap, not with a request.
    times = np.cumsum(gaps) - gaps[0] * random.random()
    return times[times < lasts_s]


def _windows(path: Path) -> list[tuple[float, float, float]]:
    found = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            try:
                start_s, rate, cv = float(row[0]), float(row[1]), float(row[2] or 1)
            except (ValueError, IndexError):
                if number == 1:
                    continue  # a header
                raise _wrong(path, number, ",".join(row), "start, rate, cv, pattern, ...") from None
            if not (np.isfinite([start_s, rate, cv]).all() and rate >= 0 and cv >= 0):
                raise _wrong(path, number, ",".join(row), "finite numbers, 0 or more")
            found.append((start_s, rate, cv))
    return sorted(found)


def _lengths(path: Path) -> dict[float, list[tuple[np.ndarray, np.ndarray]]]:
    """Start of a window -> (tokens, shares) of prompts and of outputs."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = {}
        for start, window in data.items():
            both = [_distribution(window[f"{side}_tokens"]) for side in ("input", "output")]
            if all(len(tokens) for tokens, _ in both):
                found[float(start)] = both
        return found
    except FileNotFoundError:
        raise _wrong(path, 1, "not there", "a dataset beside every trace") from None
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError, OSError) as error:
        raise _wrong(path, 1, str(error), "windows with input_tokens and output_tokens") from None


def _distribution(text: object) -> tuple[np.ndarray, np.ndarray]:
    shares = ast.literal_eval(text) if isinstance(text, str) else text
    tokens = np.array([float(each) for each in shares], float)
    weights = np.array([float(each) for each in shares.values()], float)
    good = (tokens >= 1) & (weights > 0) & (tokens < 2**27)
    tokens, weights = np.floor(tokens[good]).astype(np.int32), weights[good]
    return tokens, weights / weights.sum() if len(weights) else weights


def _wrong(path: Path, line: int, text: str, allowed: str) -> ConfigError:
    return ConfigError(
        f"{shown(path)}:{line}: {text[:80]!r}",
        allowed=allowed,
        next_step="correct the file, or leave its client out",
    )
