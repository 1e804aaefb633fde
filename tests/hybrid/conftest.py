"""A finished ``train_qat`` record in small: two arms trained for a moment on a few documents."""

from __future__ import annotations

import copy
from pathlib import Path

import pandas as pd
import pytest
import ternary_kernels
import torch

from workbench.data.document import Document
from workbench.data.tokenizer import encode, train_tokenizer
from workbench.model.build import build_model
from workbench.pilot.sections.model import Model
from workbench.records.stage_record import StageRecord
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.master import save_master
from workbench.ternary.packed import save_packed
from workbench.ternary.post_training import ternarize_post_training

WORDS = ["the quick brown fox", "jumps over", "a lazy dog", "while ternary weights", "hold still"]
CONTEXT = 32


def text_of(seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(WORDS), (60,), generator=generator)
    return ", ".join(WORDS[i] for i in chosen.tolist())


def train(model: torch.nn.Module, ids: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - CONTEXT, (8,), generator=generator)
        batch = torch.stack([ids[s : s + CONTEXT] for s in starts.tolist()])
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture(scope="module")
def one_thread():
    """Many small evaluations: threads would only wait for each other."""
    threads, native = torch.get_num_threads(), ternary_kernels.backend().threads
    ternary_kernels.set_threads(1)
    torch.set_num_threads(1)
    yield
    ternary_kernels.set_threads(native)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_thread) -> StageRecord:
    folder: Path = tmp_path_factory.mktemp("train_qat")
    documents = [Document(f"doc{i}", "made", text_of(i)) for i in range(20)]
    tokenizer = train_tokenizer(documents, 300)
    ids = torch.tensor([t for d in encode(tokenizer, [d.text for d in documents]) for t in d])
    overrides = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    section = Model(preset="tiny-1m", overrides=overrides)
    precise = build_model(section, len(tokenizer), CONTEXT, seed=1)
    ternary = copy.deepcopy(precise)
    train(precise, ids, 60)
    precise.save_pretrained(folder / "full_precision")
    report = ternarize_post_training(precise, section.policy)
    save_packed(precise, folder / "post_training", report.precisions, report.threshold)
    report = to_ternary(ternary, section.policy, ThresholdVersion())
    train(ternary, ids, 60)
    save_master(ternary, folder / "ternary_master")
    save_packed(ternary, folder / "ternary", report.precisions, report.threshold)
    tokenizer.save_pretrained(folder / "tokenizer")
    names = ("full_precision", "post_training", "ternary_master", "ternary", "tokenizer")
    record = StageRecord("train_qat", folder, artefacts={name: name for name in names})
    rows = [{"id": f"held{i}", "source": "made", "text": text_of(100 + i)} for i in range(20)]
    record.save_table("heldout", pd.DataFrame(rows))
    return record
