"""Every test draws the same random numbers every time: what fails once, fails again."""

import gc
import random

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("same_draws", derandomize=True)
settings.load_profile("same_draws")


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


def pytest_sessionfinish() -> None:
    """Or what binds C++ to Python would report at the end all that it still holds."""
    gc.unfreeze()
