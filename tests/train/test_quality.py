"""Nats and bytes of documents against a plain computation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.data.document import Document, documents_frame
from workbench.data.tokenizer import document_start, encode
from workbench.train.quality import bits_per_byte, document_losses, excerpts
from workbench.train.setup import TrainingSetup


class Uniform(torch.nn.Module):
    """Every next token equally likely, so a document costs tokens * ln(vocabulary)."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(vocab_size))

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


@pytest.fixture(scope="module")
def setup(small: SimpleNamespace) -> TrainingSetup:
    return small.make_setup()


def test_a_uniform_model_costs_the_logarithm_of_the_vocabulary(setup: TrainingSetup) -> None:
    documents = documents_frame([Document("a", "x", "größer " * 30), Document("b", "y", "z")])
    losses = document_losses(Uniform(300), setup.tokenizer, documents, context=7)
    assert losses["bytes"].tolist() == [len("größer " * 30) + 60, 1]
    assert losses["nats"].to_numpy() == pytest.approx(losses["tokens"] * math.log(300), rel=1e-6)
    bits = losses["tokens"].sum() * math.log2(300) / losses["bytes"].sum()
    assert bits_per_byte(losses) == pytest.approx(bits, rel=1e-6)


def test_windows_and_padding_change_nothing(small: SimpleNamespace, setup: TrainingSetup) -> None:
    """Against one forward pass a window, without padding, written out."""
    model = small.make_model("full_precision", setup)
    documents = documents_frame([*small.DOCUMENTS[:5], Document("one", "x", "a")])
    context = 9
    losses = document_losses(model, setup.tokenizer, documents, context)
    expected = []
    for ids in encode(setup.tokenizer, list(documents["text"])):
        stream, nats = [document_start(setup.tokenizer), *ids], 0.0
        for begin in range(0, len(ids), context):
            window = torch.tensor(stream[begin : begin + context + 1])
            with torch.no_grad():
                logits = model(input_ids=window[None, :-1]).logits[0]
            rows = torch.arange(len(window) - 1)
            nats -= float(logits.log_softmax(-1)[rows, window[1:]].sum())
        expected.append(nats)
    assert losses["nats"].to_numpy() == pytest.approx(expected, rel=1e-5)
    assert model.training, "the mode is as it was"


def test_excerpts_come_from_many_documents_first() -> None:
    documents = [Document("a", "s", "0123456789"), Document("b", "s", "abc")]
    pieces = excerpts(documents, 4, 3)
    assert pieces["id"].tolist() == ["a@0", "b@0", "a@4"]
    assert pieces["text"].tolist() == ["0123", "abc", "4567"]
    everything = excerpts(documents, 4, 99)
    assert "".join(everything[everything["id"].str.startswith("a@")]["text"]) == "0123456789"


def test_losses_are_finite_numbers_in_the_order_of_the_documents(setup: TrainingSetup) -> None:
    documents = pd.DataFrame(
        {"id": ["long", "short"], "source": ["s", "s"], "text": ["word " * 50, "w"]}
    )
    losses = document_losses(Uniform(300), setup.tokenizer, documents, context=16)
    assert losses["id"].tolist() == ["long", "short"]
    assert np.isfinite(losses["nats"]).all() and losses["nats"].iloc[0] > losses["nats"].iloc[1]
