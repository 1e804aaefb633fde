"""Whether anybody can move a widget."""

from __future__ import annotations

import importlib.util
import os

from workbench.paths import HEADLESS


def interactive() -> bool:
    """In a notebook with a reader before it: inside a kernel, not executed by papermill."""
    if os.environ.get(HEADLESS) or importlib.util.find_spec("ipywidgets") is None:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
