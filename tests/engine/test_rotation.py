"""Rotated ternary layers in the engine: in the kernels on a CPU, never silently anywhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ternary_kernels as tk
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.check.ternary import check_ternary
from workbench.engine.architecture import NotForKernels
from workbench.engine.device import from_codes
from workbench.engine.engine import Engine
from workbench.errors import ConfigError
from workbench.export.bitnet_folder import write_bitnet_folder
from workbench.export.gguf_file import write_gguf
from workbench.export.onnx_file import write_onnx
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.packed import load_packed, save_packed

TURNED = ThresholdVersion(granularity="row", rotation=128)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    return made(tmp_path, TURNED)


def made(folder: Path, threshold: ThresholdVersion) -> tuple[Path, torch.nn.Module]:
    """A packed folder whose widths (96, 160) no group of 128 divides, and the model it is of."""
    torch.manual_seed(4)
    config = LlamaConfig(
        hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    report = to_ternary(model, None, threshold)
    save_packed(model, folder / "packed", report.precisions, threshold)
    return folder / "packed", model


@torch.no_grad()
@pytest.mark.parametrize("granularity", ["row", "group128"])
@pytest.mark.parametrize("rotation", ["none", 128])
def test_the_kernels_compute_what_was_trained(granularity, rotation, tmp_path: Path) -> None:
    threshold = ThresholdVersion(granularity=granularity, rotation=rotation)
    folder, model = made(tmp_path, threshold)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = model(torch.tensor([ids])).logits[0].numpy()
    with Engine.load(folder) as engine:
        if tk.available_isas():
            assert "native" in engine.core.backend
        got = engine.logits(ids)
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.02
    loaded = load_packed(folder, expect=threshold)(torch.tensor([ids])).logits[0].numpy()
    assert np.linalg.norm(loaded - expected) / np.linalg.norm(expected) < 0.02
    check = check_ternary(folder)
    assert check.ok and check.threshold == threshold.id


def test_another_threshold_is_refused_by_name(packed) -> None:
    with pytest.raises(ConfigError, match="rot128"):
        load_packed(packed[0], expect=ThresholdVersion(granularity="row"))


def test_a_hybrid_that_mixes_runs_through_transformers_and_says_why(packed, tmp_path: Path) -> None:
    _, model = packed
    mixed = Policy(int8=["*embed_tokens", "*lm_head", "*.v_proj"], ternary=["*.q_proj", "*.k_proj"])
    again = AutoModelForCausalLM.from_config(model.config).eval()
    report = to_ternary(again, mixed, TURNED)
    save_packed(again, tmp_path / "mixed", report.precisions, TURNED)
    with Engine.load(tmp_path / "mixed") as engine:
        assert any("want rotated" in note for note in engine.core.notes)


def test_no_other_format_takes_it_silently(packed, tmp_path: Path) -> None:
    model = load_packed(packed[0])
    for write in (
        lambda: write_gguf(model, None, tmp_path / "a.gguf", "tq2_0", name="a", description=""),
        lambda: write_onnx(model, tmp_path / "a.onnx", name="a"),
        lambda: write_bitnet_folder(model, None, tmp_path / "a"),
    ):
        with pytest.raises(ConfigError, match="rotation"):
            write()
    assert not list(tmp_path.glob("a*"))
    with pytest.raises(NotForKernels, match="CPU alone"):
        from_codes(torch.ones(2, 32, dtype=torch.uint8), 1.0, "cuda", 128)
