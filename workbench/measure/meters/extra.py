"""Libraries of the extra ``meters``, which only some readers need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from workbench.errors import ConfigError


def library(name: str, field: str) -> ModuleType:
    """The module ``name``. Raises ConfigError that names the extra where it is not installed.

    field: of the pilot file, what needs it.
    """
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ConfigError(
            f"{field} needs {package}, which is not installed",
            next_step="pip install 'ternary-workbench[meters]', or remove the meter",
        ) from None
