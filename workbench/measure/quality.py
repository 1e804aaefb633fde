"""Held-out quality of an arm as it is served: computed through the engine, not the trainer.

What is judged, how it is cut into windows and how the loss is counted is what the training
used (:mod:`workbench.train.quality`); only the arithmetic is the engine's. So a difference to
the training's own figure is the price of the artefact: packing, half precision, kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutput

from workbench.data.document import documents_from
from workbench.data.tokenizer import sample_counts, window_characters
from workbench.engine.engine import Engine
from workbench.files import replacing
from workbench.measure.fewest import FEWEST_DOCUMENTS
from workbench.train.quality import document_losses, excerpts
from workbench.wording.counts import number_of

EXCERPT_WINDOWS = 4
"""Length of an excerpt in training sequences: long enough for most of its tokens to have a
past, short enough that many documents are judged."""


class EngineModel(nn.Module):
    """An engine in the place of a ``transformers`` model. Its slot 0 must be empty.

    Shapes: B sequences, T tokens, V vocabulary.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        # Says where input belongs: the engine takes token ids on the CPU.
        self.device_marker = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        """``input_ids`` [B, T] -> ``logits`` float32 [B, T, V]."""
        rows = [self._engine.logits(ids_T) for ids_T in input_ids.tolist()]
        return CausalLMOutput(logits=torch.from_numpy(np.stack(rows)))


def judged_excerpts(
    heldout: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, context: int, count: int
) -> pd.DataFrame:
    """At most ``count`` excerpts of the held-out documents, in the documents' order.

    heldout: of ``documents_frame``. context: tokens of a training sequence.
    Returns columns id (``<document>@<first character>``), source, text, and messages where there
    are conversations.
    """
    documents = documents_from(heldout)
    counts = sample_counts(tokenizer, list(heldout["text"]))
    return excerpts(documents, window_characters(EXCERPT_WINDOWS * context, *counts), count)


def documents_of(excerpt_ids: pd.Series) -> list[str]:
    """The document of each excerpt: pieces of one document are no independent observations."""
    return [name.rpartition("@")[0] for name in excerpt_ids]


def independent_units(rows: pd.DataFrame) -> tuple[list[str], str]:
    """(a label for each excerpt, what the labels are): what may be resampled as independent.

    Documents of one source resemble each other, so sources are resampled where there are enough
    for an interval; else documents, and then nothing is said about other sources.
    """
    sources = rows["source"].nunique()
    if sources >= FEWEST_DOCUMENTS:
        return list(rows["source"]), f"resampled by source, {number_of(sources, 'source')}"
    how = f"resampled by document, of these {number_of(sources, 'source')} alone"
    return documents_of(rows["id"]), how


def engine_losses(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    judged: pd.DataFrame,
    context: int,
    report: Callable[[int], None],
) -> pd.DataFrame:
    """Columns id, source, nats, bytes of each excerpt; ``report`` hears how many are done."""
    model, frames = EngineModel(engine), []
    for begin in range(0, len(judged), 8):
        frames.append(document_losses(model, tokenizer, judged[begin : begin + 8], context))
        report(min(begin + 8, len(judged)))
    return pd.concat(frames, ignore_index=True)[["id", "source", "nats", "bytes"]]


class QualityProbes:
    """The held-out excerpts in slices, each judged by every arm at one point of a session.

    So quality is measured between what is timed, with the same engines on the same machine, and
    every excerpt is judged by all arms within seconds. A slice that an arm has judged is on disk
    and is not judged again.
    """

    def __init__(
        self,
        folder: Path,
        engines: Mapping[str, Engine],
        tokenizer: PreTrainedTokenizerBase,
        excerpts: pd.DataFrame,
        context: int,
        slices: int = 1,
    ) -> None:
        """excerpts: columns id, source, text. context: tokens of a training sequence. slices: parts
        of the excerpts, in their order and as equal as can be."""
        self._folder, self._engines, self._tokenizer = folder, dict(engines), tokenizer
        self._context = context
        places = np.array_split(np.arange(len(excerpts)), max(1, min(slices, len(excerpts))))
        self._slices = [excerpts.iloc[place] for place in places]
        folder.mkdir(parents=True, exist_ok=True)

    def judge(
        self,
        number: int,
        arms: Sequence[str],
        report: Callable[[str, int, int], None] = lambda arm, done, of: None,
    ) -> None:
        """Slice ``number`` by each of ``arms`` in turn, those without an engine left out; nothing
        where there are fewer slices. report: hears (arm, excerpts done, of how many)."""
        if number >= len(self._slices):
            return
        excerpts = self._slices[number]
        for arm in arms:
            if arm not in self._engines or (path := self._path(number, arm)).exists():
                continue
            engine, heard = self._engines[arm], partial(self._heard, report, arm, len(excerpts))
            losses = engine_losses(engine, self._tokenizer, excerpts, self._context, heard)
            with replacing(path) as unfinished:
                losses.assign(arm=arm, slice=number).to_parquet(unfinished, index=False)

    def finish(self, report: Callable[[str, int, int], None]) -> pd.DataFrame:
        """Judge what is left, and the table ``quality``: columns id, source, nats, bytes, arm and
        slice; a row for each excerpt and arm, the arms one after the other."""
        arms, numbers = list(self._engines), range(len(self._slices))
        for number in numbers:
            self.judge(number, arms, report)
        frames = [pd.read_parquet(self._path(number, arm)) for arm in arms for number in numbers]
        return pd.concat(frames, ignore_index=True)

    @staticmethod
    def _heard(report: Callable[[str, int, int], None], arm: str, of: int, done: int) -> None:
        report(arm, done, of)

    def _path(self, number: int, arm: str) -> Path:
        return self._folder / f"quality-{number:03d}-{arm}.parquet"
