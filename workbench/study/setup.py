"""The text of a study: read, split and tokenised once; all arms are evaluated on the same excerpts.

Excerpts come from as many held-out documents as there are, because documents are what the
intervals resample: a few long documents would make them wide, whatever their length.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from workbench.data.corpus import read_corpus
from workbench.data.dataset import judged_of, parts_of, write_tokens
from workbench.data.tokenizer import load_tokenizer, make_tokenizer
from workbench.files import replacing
from workbench.machine.device import choose_device
from workbench.records.events import Progress
from workbench.study.arm import StudyArm
from workbench.ternary.folder import replacing_folder
from workbench.train.setup import TrainingSetup, corpus_summary, heldout_excerpts

EXCERPTS = "excerpts.parquet"
MOST_EXCERPTS = 4096


def training_setup(arm: StudyArm, folder: Path, progress: Progress) -> TrainingSetup:
    """What ``arm`` learns from and is evaluated on; ``folder`` keeps it for the other arms."""
    data, train = arm.pilot.data, arm.pilot.train
    if not (folder / EXCERPTS).exists():
        _prepare(arm, folder, progress)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    held_out = pd.read_parquet(folder / EXCERPTS)
    return TrainingSetup(
        train=train,
        seed=arm.seed,
        tokens=write_tokens(folder / "tokens.npy", tokenizer, ()),
        judged=judged_of(folder / "tokens.npy"),
        parts=parts_of(folder / "tokens.npy", data),
        sequence_length=data.sequence_length,
        tokenizer=tokenizer,
        excerpts=held_out.head(train.eval_sequences),
        device=choose_device(arm.pilot.readiness.device).name,
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
    progress.note(corpus_summary(corpus, tokens, judged_of(folder / "tokens.npy")))
    held_out = heldout_excerpts(corpus, tokens, data.sequence_length, MOST_EXCERPTS)
    with replacing(folder / EXCERPTS) as partial:
        held_out.to_parquet(partial, index=False)
