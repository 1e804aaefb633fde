"""A training small enough for tests: a model of a few thousand weights on generated text."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedModel

from workbench.data.document import Document
from workbench.data.tokenizer import document_start, encode, train_tokenizer
from workbench.model.build import build_model
from workbench.pilot.sections.model import Model
from workbench.pilot.sections.train import Train
from workbench.records.events import Progress
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.train.quality import excerpts
from workbench.train.schedule import TrainedArm
from workbench.train.setup import TrainingSetup

SEED = 11
SEQUENCE_LENGTH = 16
DOCUMENTS = [
    Document(f"d{i}", "test", f"def f{i}(x):\n    return x + {i * i % 97}  # sum {i}\n" * 4)
    for i in range(40)
]
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MODEL = Model(preset="tiny-1m", overrides=SHAPE)


def make_setup(**train: object) -> TrainingSetup:
    tokenizer = train_tokenizer(DOCUMENTS, 300)
    lists = encode(tokenizer, [d.text for d in DOCUMENTS])
    ids = [token for tokens in lists for token in (document_start(tokenizer), *tokens)]
    settings = {"steps": 24, "batch_size": 2, "save_every": 5, "evaluations": 6, "lr": 1e-3}
    phases = {"warmup": {"share": 0.2}, "threshold": {"share": 0.2}}
    return TrainingSetup(
        train=Train(**settings | phases | train),
        seed=SEED,
        tokens=np.asarray(ids, np.uint16),
        sequence_length=SEQUENCE_LENGTH,
        tokenizer=tokenizer,
        excerpts=excerpts(DOCUMENTS, 40, 4),
    )


def make_model(arm: TrainedArm, setup: TrainingSetup) -> PreTrainedModel:
    model = build_model(MODEL, len(setup.tokenizer), SEQUENCE_LENGTH, SEED)
    if arm == "ternary":
        to_ternary(model, MODEL.policy, ThresholdVersion.from_section(MODEL.threshold))
    return model


class Stopped(Exception):
    """As if the process had been killed, for a training in the test's own process."""


class StoppingProgress(Progress):
    """Raises :class:`Stopped` when step ``stop_at`` has its row; None: never."""

    stop_at: int | None = None

    def step(self, task: str, done: int, *rest: object, **figures: float) -> None:
        if done == self.stop_at:
            raise Stopped
        super().step(task, done, *rest, **figures)
