"""Traces and profiles in temporary folders, as the stages make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.load.profile import REQUESTS, LoadProfile, write_batches
from workbench.load.trace import Trace, read_trace
from workbench.pilot.sections.profile_load import ProfileLoad


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Trace]:
    """Reads bytes, or a path, as a trace; keywords are fields of ``profile_load``."""

    def from_(content: bytes | Path, name: str = "trace", **section: Any) -> Trace:
        path = content if isinstance(content, Path) else tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        return read_trace(path, ProfileLoad(**section), tmp_path / REQUESTS)

    return from_


@pytest.fixture
def profiled(tmp_path: Path) -> Callable[..., LoadProfile]:
    """The profile of requests at the given times."""

    def of(
        times_s: Sequence[float],
        outputs: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        window_s: float = 60.0,
        prompts: Sequence[int] | None = None,
    ) -> LoadProfile:
        n = len(times_s)
        codes = {"": 0, "interactive": 1, "batch": 2}
        batch = {
            "start_s": np.asarray(times_s, float),
            "prompt_tokens": np.asarray(
                prompts if prompts is not None else np.arange(1, n + 1) * 100, np.int32
            ),
            "output_tokens": np.asarray(outputs if outputs is not None else [10] * n, np.int32),
            "class": np.array([codes[c] for c in classes or [""] * n], np.int8),
        }
        store = write_batches([batch], tmp_path / REQUESTS, 512, lambda done: None)
        return LoadProfile.of(Trace(store, "test", "measured"), window_s, tmp_path)

    return of
