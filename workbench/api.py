"""What other code imports of the workbench: ``from workbench.api import to_ternary, Engine``.

=================== ==========================================================================
make ternary        :func:`to_ternary` with a :class:`Policy` and a :class:`ThresholdVersion`
files               :func:`save_packed`, :func:`load_packed`, :func:`load_master`,
                    :func:`check_ternary`
run                 :class:`Engine`, :class:`GenerationRequest`; in a core of one's own:
                    :func:`check_core`
adapters            :func:`add_lora`, :func:`fine_tune_lora`, :func:`save_lora`,
                    :func:`load_lora`
load                :func:`read_trace`, :class:`LoadProfile`
results             :func:`find_run`, :func:`open_run` of a pilot that :func:`resolve` has read,
                    :class:`Metric`
=================== ==========================================================================

Every name's documentation has an example that the tests run. A name is imported when it is first
asked for, so that reading a trace needs no torch. What the user can mend is raised as a
:class:`WorkbenchError`, a :class:`ConfigError` where the input is wrong.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.check.core import check_core
    from workbench.check.ternary import check_ternary
    from workbench.engine.engine import Engine
    from workbench.engine.request import GenerationRequest
    from workbench.errors import ConfigError, WorkbenchError
    from workbench.load.profile import LoadProfile
    from workbench.load.trace import read_trace
    from workbench.pilot.resolve import resolve
    from workbench.pilot.sections.model import Policy
    from workbench.records.metric import Metric
    from workbench.records.run import find_run, open_run
    from workbench.ternary.convert import to_ternary
    from workbench.ternary.master import load_master
    from workbench.ternary.packed import load_packed, save_packed
    from workbench.ternary.threshold import ThresholdVersion
    from workbench.train.fine_tune import fine_tune_lora
    from workbench.train.lora import add_lora, load_lora, save_lora

_WHERE = {
    "ConfigError": "workbench.errors",
    "Engine": "workbench.engine.engine",
    "GenerationRequest": "workbench.engine.request",
    "LoadProfile": "workbench.load.profile",
    "Metric": "workbench.records.metric",
    "Policy": "workbench.pilot.sections.model",
    "ThresholdVersion": "workbench.ternary.threshold",
    "WorkbenchError": "workbench.errors",
    "add_lora": "workbench.train.lora",
    "check_core": "workbench.check.core",
    "check_ternary": "workbench.check.ternary",
    "find_run": "workbench.records.run",
    "fine_tune_lora": "workbench.train.fine_tune",
    "load_lora": "workbench.train.lora",
    "load_master": "workbench.ternary.master",
    "load_packed": "workbench.ternary.packed",
    "open_run": "workbench.records.run",
    "read_trace": "workbench.load.trace",
    "resolve": "workbench.pilot.resolve",
    "save_lora": "workbench.train.lora",
    "save_packed": "workbench.ternary.packed",
    "to_ternary": "workbench.ternary.convert",
}

__all__ = [
    "ConfigError", "Engine", "GenerationRequest", "LoadProfile", "Metric", "Policy",
    "ThresholdVersion", "WorkbenchError", "add_lora", "check_core", "check_ternary", "find_run",
    "fine_tune_lora", "load_lora", "load_master", "load_packed", "open_run", "read_trace",
    "resolve", "save_lora", "save_packed", "to_ternary",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"workbench.api has no {name!r}; it has {', '.join(_WHERE)}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(_WHERE)
