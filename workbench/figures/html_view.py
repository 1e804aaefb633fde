"""HTML beside the figures of a notebook, and the same as plain text where HTML is not shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HtmlView:
    """What a cell shows: ``html`` in a notebook, ``text`` where there is none."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text
