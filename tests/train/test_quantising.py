"""Weights are quantised once an optimizer step, however many micro-batches it has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from workbench.records.events import Progress
from workbench.ternary import BitLinear, bit_linears
from workbench.train.arm import train_arm
from workbench.train.lora import add_lora, train_lora

AT_ONCE = {"warmup": {"share": 0.0}, "threshold": {"share": 0.0}}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each layer quantised its weights in training mode."""
    calls: Counter[int] = Counter()
    real = BitLinear._quantise

    def quantise(self: BitLinear) -> torch.Tensor:
        calls[id(self)] += self.training
        return real(self)

    monkeypatch.setattr(BitLinear, "_quantise", quantise)
    return calls


@pytest.mark.parametrize("parts", [1, 3])
def test_once_a_step(
    small: SimpleNamespace, tmp_path: Path, counted: Counter[int], parts: int
) -> None:
    setup = small.make_setup(steps=4, evaluations=1, gradient_accumulation=parts, **AT_ONCE)
    model = small.make_model("ternary", setup)
    train_arm("ternary", model, setup, tmp_path, Progress(tmp_path / "e.jsonl", "train_qat"))
    assert [counted[id(layer)] for _, layer in bit_linears(model)] == [4] * 14


def test_once_altogether_under_adapters(
    small: SimpleNamespace, tmp_path: Path, counted: Counter[int]
) -> None:
    pytest.importorskip("peft")
    setup = small.make_setup(steps=4, evaluations=1)
    model = add_lora(small.make_model("ternary", setup))
    train_lora(model, setup, tmp_path, Progress(tmp_path / "e.jsonl", "train_qat"))
    assert [counted[id(layer)] for _, layer in bit_linears(model)] == [1] * 14
