"""Every test draws the same random numbers and heeds Ctrl-C: what fails once, fails again."""

import gc
import importlib.util
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("same_draws", derandomize=True)
settings.load_profile("same_draws")
# Jobs that a shell starts in the background ignore Ctrl-C, and so would all that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> None:
    """What is imported by now is left out of garbage collections: a training asks for several, and
    each would walk through all of torch and transformers, longer than it trains."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def english_of() -> Callable[..., list[str]]:
    """Of a Russian page the texts with an English word that is no name (``english_words.py``)."""
    path = Path(__file__).with_name("english_words.py")
    spec = importlib.util.spec_from_file_location("english_words", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.english_of


def pytest_sessionfinish() -> None:
    """Or what binds C++ to Python would report at the end all that it still holds."""
    gc.unfreeze()
