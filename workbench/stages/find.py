"""The code of a stage of the roadmap: the module of its name in this package.

Imported when it is asked for, because a stage may need torch and transformers, which take
seconds, and the one that was asked for may not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

from workbench.pilot.spec import Pilot
from workbench.stages.context import StageContext


def stage_run(name: str) -> Callable[[StageContext], None]:
    """``run`` of the stage ``name``."""
    return _module(name).run


def stage_check(name: str) -> Callable[[Pilot], list[str]] | None:
    """``check`` of the stage ``name``: what makes it impossible, in sentences. None without one."""
    return getattr(_module(name), "check", None)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"workbench.stages.{name}")
