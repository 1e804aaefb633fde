"""The small training that several files use; a script needs it too, so it is no fixture."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """make_lesson(**train), make_model(arm, lesson) and the constants of lesson.py."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("lesson.py"))))
