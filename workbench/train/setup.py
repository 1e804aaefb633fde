"""What a training is made of: the pilot's settings, tokens to learn from, text to be evaluated on.

Both arms get the same one, and so do all arms of a study on one corpus.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from workbench.data.corpus import Corpus
from workbench.data.dataset import PackedSequences
from workbench.data.mix import TokenPart
from workbench.data.tokenizer import window_characters
from workbench.machine.device import DeviceName, choose_device
from workbench.pilot.sections.train import Train
from workbench.train.quality import excerpts
from workbench.wording.counts import number_of


@dataclass(frozen=True)
class TrainingSetup:
    """What both arms have in common.

    tokens: all training tokens, one dimension. judged: bool, which of them are learned; None for
    all. parts: of several corpora. sequence_length: tokens of the training sequences
    and of the windows that are evaluated. excerpts: held-out text, columns id, source, text.
    new_norms: the ternary arm has untrained norms in pretrained layers; see the schedule.
    device: what trains; without one the GPU that torch can use, else the CPU.
    """

    train: Train
    seed: int
    tokens: np.ndarray
    sequence_length: int
    tokenizer: PreTrainedTokenizerBase
    excerpts: pd.DataFrame
    new_norms: bool = False
    judged: np.ndarray | None = None
    parts: tuple[TokenPart, ...] = ()
    device: DeviceName = field(default_factory=lambda: choose_device("auto").name)

    def first_sequences(self, most: int) -> torch.Tensor:
        """Token ids [up to ``most``, sequence_length] of the training text, int64; of several
        corpora in the proportion of the mix."""
        length = self.sequence_length
        if self.parts:
            mix = PackedSequences(self.tokens, length, most, self.seed, parts=self.parts)
            return torch.stack([mix[place]["input_ids"] for place in range(most)])
        whole = min(most, len(self.tokens) // length) * length
        return torch.from_numpy(self.tokens[:whole].astype("int64")).view(-1, length)


def heldout_excerpts(
    corpus: Corpus, tokens: np.ndarray, sequence_length: int, count: int
) -> pd.DataFrame:
    """At most ``count`` pieces of the held-out documents, each of about ``sequence_length`` tokens.

    tokens: of ``corpus.training``; they tell how many characters a token has.
    Columns id, source, text, and messages where there are conversations.
    """
    characters = sum(len(document.text) for document in corpus.training)
    piece = window_characters(sequence_length, characters, len(tokens))
    return excerpts(corpus.heldout, piece, count)


def corpus_summary(corpus: Corpus, tokens: np.ndarray, judged: np.ndarray | None = None) -> str:
    """judged: as in :class:`TrainingSetup`."""
    text = (
        f"{number_of(len(corpus.training), 'document')} to learn from "
        f"({corpus.training_bytes / 1e6:.1f} MB, {number_of(len(tokens), 'token', form=',')}), "
        f"{len(corpus.heldout)} held out"
    )
    if len(corpus.parts) > 1:
        text = "; ".join(
            [*map(str, corpus.parts), f"in all {number_of(len(tokens), 'token', form=',')}"]
        )
    else:
        files = corpus.parts[0].files
        text += f"; {files}" if files and files.left_out else ""
        text += corpus.parts[0].cut_text
    if judged is not None:
        answers = int(judged.sum())
        text += (
            f"; conversations are learned by their answers alone: {answers:,} of the tokens "
            f"({answers / len(tokens):.0%}), a turn's end included"
        )
    return text
