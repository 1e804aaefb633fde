"""Bits per byte of one model after another on the same text, each evaluated once for good.

Every result is a line on the disk before the next model is evaluated, so a killed stage repeats
one evaluation at most.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from workbench.errors import StageError
from workbench.files import digest_json
from workbench.hybrid.base import Assignment, Base
from workbench.json_lines import as_line, keep_rows, read_rows
from workbench.train.quality import bits_per_byte, document_losses


@dataclass
class PlanEvaluator:
    """texts: columns id, source, text. context: tokens of a window. path: results so far."""

    tokenizer: PreTrainedTokenizerBase
    texts: pd.DataFrame
    context: int
    path: Path
    known: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep_rows(self.path)
        self.known |= {row["key"]: row["bits_per_byte"] for row in read_rows(self.path)}

    def __call__(self, base: Base, assignment: Assignment) -> float:
        """Bits per byte of ``base`` with ``assignment``. StageError for a loss not finite."""
        changed = {u: p for u, p in assignment.items() if p != base.own}
        key = digest_json({"base": base.name, "changed": changed})
        if key not in self.known:
            with base.exchanged(changed) as model:
                losses = document_losses(model, self.tokenizer, self.texts, self.context)
            if not np.isfinite(losses["nats"]).all():
                raise StageError(
                    f"{base.name} with {changed or 'nothing changed'}: a loss that is not finite",
                    next_step="look at the loss of that arm in train_qat: it has diverged",
                )
            value = bits_per_byte(losses)
            self._keep({"key": key, "base": base.name, "changed": changed, "bits_per_byte": value})
        return self.known[key]

    def _keep(self, row: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(as_line(row))
            file.flush()
            os.fsync(file.fileno())
        self.known[row["key"]] = row["bits_per_byte"]
