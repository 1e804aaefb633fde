"""Widgets of the notebooks: they choose what is shown, and say what to write to keep the choice.

Only notebooks import this package; no stage does, and nothing is computed for a record here.
Executed headlessly (``workbench run``, papermill) each shows its static figure, so a stored
notebook reads the same without a kernel. ``ipywidgets`` draws in JupyterLab and VS Code both;
figures stay plotly's own mime type and are exchanged in place.
"""

from workbench.widgets.view import show

__all__ = ["show"]
