"""Every test draws the same random numbers every time: what fails once, fails again."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
