"""The labels of a figure: their form in tables, and the order in which a reader meets them."""

from __future__ import annotations

import re
from collections.abc import Mapping

ARMS = (
    "full_precision", "ternary", "post_training", "int8", "int4", "checkpoint", "speculative",
    "hybrid",
)  # fmt: skip
PHASES = ("before", "switch", "after")
"""Of a rollback under load."""
LABELS = (
    "arm",
    "draft",
    "over",
    "source",
    "corpus",
    "asked",
    "shape",
    "class",
    "batch",
    "way",
    "phase",
    "quantile",
    "precision",
    "threads",
    "requests",
    "slots",
    "batch_wait_ms",
)


def label_text(labels: Mapping[str, str]) -> str:
    """``arm=ternary source=probe``, the form labels have in tables."""
    return " ".join(f"{name}={labels[name]}" for name in sorted(labels))


def labels_of(text: str) -> dict[str, str]:
    """The inverse of :func:`label_text`. A value may hold spaces: ``window=10 s``."""
    return dict(re.findall(r"(\w+)=(.*?)(?=\s+\w+=|$)", text))


def label_place(name: str) -> tuple[int, str]:
    """Sorts labels into the order in which they are read."""
    return (LABELS.index(name) if name in LABELS else len(LABELS), name)
