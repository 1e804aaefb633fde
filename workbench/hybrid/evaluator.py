"""Bits per byte of one model after another on the same text, each evaluated once for good.

Every result is a line on the disk before the next model is evaluated, so a killed stage repeats
one evaluation at most. The line holds the loss of each piece of text: two models are compared
piece by piece, and their difference has an interval over the documents.
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
from workbench.measure.statistics import Estimate, bits_per_byte_difference
from workbench.train.quality import bits_per_byte, document_losses


@dataclass(frozen=True)
class Evaluation:
    """nats, size_bytes: of each piece of text, in their order."""

    bits_per_byte: float
    nats: list[float]
    size_bytes: list[int]


@dataclass
class PlanEvaluator:
    """texts: columns id, source, text. context: tokens of a window. path: results so far."""

    tokenizer: PreTrainedTokenizerBase
    texts: pd.DataFrame
    context: int
    path: Path
    known: dict[str, Evaluation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep_rows(self.path)
        self.known |= {
            row["key"]: Evaluation(row["bits_per_byte"], row["nats"], row["bytes"])
            for row in read_rows(self.path)
            if "nats" in row  # of before there were intervals: evaluated again
        }

    def __call__(self, base: Base, assignment: Assignment) -> float:
        """Bits per byte of ``base`` with ``assignment``. StageError for a loss not finite."""
        return self._evaluated(base, assignment).bits_per_byte

    def loss(self, base: Base, assignment: Assignment) -> Estimate:
        """Bits per byte that ``assignment`` loses against ``base`` as it stands, with an interval
        over the documents; without one it says why. StageError for a loss not finite."""
        own, changed = self._evaluated(base, {}), self._evaluated(base, assignment)
        documents = [name.rpartition("@")[0] for name in self.texts["id"]]
        return bits_per_byte_difference(own.nats, changed.nats, own.size_bytes, groups=documents)

    def _evaluated(self, base: Base, assignment: Assignment) -> Evaluation:
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
            found = Evaluation(
                bits_per_byte(losses), losses["nats"].tolist(), losses["bytes"].tolist()
            )
            row = {"key": key, "base": base.name, "changed": changed}
            row |= {"bits_per_byte": found.bits_per_byte, "nats": found.nats}
            self._keep(row | {"bytes": found.size_bytes})
            self.known[key] = found
        return self.known[key]

    def _keep(self, row: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(as_line(row))
            file.flush()
            os.fsync(file.fileno())
