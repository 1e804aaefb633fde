"""The small training that several files use; a script needs it too, so it is no fixture."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models of a few thousand weights gain nothing from threads, and lose on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """make_setup(**train), make_model(arm, setup) and the constants of small_training.py."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_training.py"))))
