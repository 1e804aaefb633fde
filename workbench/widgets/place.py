"""One output of a cell that is rewritten in place.

Plotly figures display themselves and forget the place they were given, so what is shown is put
into its mime type here: plotly's own for a figure, HTML beside text for a table.
"""

from __future__ import annotations

import json
from typing import Any

PLOTLY = "application/vnd.plotly.v1+json"


class Place:
    """Where something is shown, and shown anew."""

    def __init__(self, shown: Any) -> None:
        from IPython.display import display

        self._handle = display(bundle(shown), raw=True, display_id=True)

    def show(self, shown: Any) -> None:
        if self._handle:
            self._handle.update(bundle(shown), raw=True)


def bundle(shown: Any) -> dict[str, Any]:
    """Mime type -> content."""
    if hasattr(shown, "to_json"):
        drawn = json.loads(shown.to_json())
        return {PLOTLY: {"config": {"displaylogo": False}, **drawn}, "text/plain": "figure"}
    return {"text/html": str(shown._repr_html_()), "text/plain": repr(shown)}
