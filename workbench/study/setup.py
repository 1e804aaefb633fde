"""The text of a study: read, split and tokenised once, and judged on the same excerpts by all.

Excerpts come from as many held-out documents as there are, because documents are what the
intervals resample: a few long documents would make them wide, whatever their length.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from workbench.data.corpus import read_corpus
from workbench.data.dataset import write_tokens
from workbench.data.tokenizer import load_tokenizer, make_tokenizer
from workbench.files import replacing
from workbench.records.events import Progress
from workbench.study.arm import StudyArm
from workbench.ternary.folder import replacing_folder
from workbench.train.arm import TrainingSetup
from workbench.train.quality import excerpts

EXCERPTS = "excerpts.parquet"
MOST_EXCERPTS = 4096


def training_setup(arm: StudyArm, folder: Path, progress: Progress) -> TrainingSetup:
    """What ``arm`` learns from and is judged on; ``folder`` keeps it for the other arms."""
    data, train = arm.pilot.data, arm.pilot.train
    if not (folder / EXCERPTS).exists():
        _prepare(arm, folder, progress)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    judged = pd.read_parquet(folder / EXCERPTS)
    return TrainingSetup(
        train=train,
        seed=arm.seed,
        tokens=write_tokens(folder / "tokens.npy", tokenizer, ()),
        sequence_length=data.sequence_length,
        tokenizer=tokenizer,
        excerpts=judged.head(train.eval_sequences),
    )


def _prepare(arm: StudyArm, folder: Path, progress: Progress) -> None:
    """Tokenizer and tokens first, the excerpts last: where they are, all is there."""
    data = arm.pilot.data
    corpus = read_corpus(data, arm.split_seed)
    with replacing_folder(folder / "tokenizer") as partial:
        made = make_tokenizer(data, corpus.training, arm.pilot.model.checkpoint)
        made.save_pretrained(partial)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    tokens = write_tokens(folder / "tokens.npy", tokenizer, corpus.training, progress)
    characters = sum(len(document.text) for document in corpus.training)
    piece = max(1, data.sequence_length * characters // len(tokens))
    progress.note(
        f"{len(corpus.training)} documents to learn from ({corpus.training_bytes / 1e6:.1f} MB, "
        f"{len(tokens):,} tokens), {len(corpus.heldout)} held out"
    )
    with replacing(folder / EXCERPTS) as partial:
        excerpts(corpus.heldout, piece, MOST_EXCERPTS).to_parquet(partial, index=False)
