"""The arithmetic of the presets, held against models that transformers builds from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.model.presets import PRESETS, Shape
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.packed import save_packed


def empty(shape: Shape) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**shape.config_fields()))


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_counted_as_transformers_builds_them(name: str) -> None:
    shape = PRESETS[name]
    shape = replace(shape, layers=min(shape.layers, 3))  # a block is like the next
    assert shape.parameters == sum(p.numel() for p in empty(shape).parameters())


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("tiny-1m", 0.001), ("tiny-2m", 0.002), ("tiny-5m", 0.005), ("small-8m", 0.008),
        ("small-25m", 0.025), ("medium-100m", 0.1), ("medium-350m", 0.35), ("bitnet-700m", 0.7),
        ("bitnet-1.3b", 1.3), ("bitnet-2b4t", 2.4), ("bitnet-3b", 3.4), ("llama-3.2-3b", 3.2),
        ("bitnet-3.9b", 4.4), ("llama-30b", 32.5), ("llama-3-70b", 70.6),
    ],
)  # fmt: skip
def test_each_preset_has_about_the_size_of_its_name(name: str, billions: float) -> None:
    assert PRESETS[name].parameters / 1e9 == pytest.approx(billions, rel=0.15)


def test_every_preset_is_tested_for_its_size() -> None:
    marks = test_each_preset_has_about_the_size_of_its_name.pytestmark
    assert {name for name, _ in marks[0].args[1]} == set(PRESETS)


@pytest.mark.parametrize("tied", [True, False])
def test_serving_bytes_are_those_of_a_packed_file(tmp_path, tied: bool) -> None:
    shape = Shape(64, 130, 2, 4, 2, 300, 64, tied=tied)  # 130: a row ends inside a byte
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config_fields()))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.bfloat16()
    report = to_ternary(model, Policy(), ThresholdVersion())
    save_packed(model, tmp_path / "p", report.precisions, ThresholdVersion())
    path = tmp_path / "p" / "model.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size - header == shape.serving_bytes_ternary()


def kept_bytes(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """Bytes of the tensors that one forward pass keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids, labels=ids).loss
    assert loss.isfinite()
    return sum(kept.values())


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize(("name", "vocab"), [("tiny-2m", 300), ("small-8m", 4096)])
def test_the_training_estimate_is_what_a_step_keeps(name, vocab, ternary) -> None:
    shape = replace(PRESETS[name], vocab=vocab, layers=3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config_fields())).train()
    if ternary:
        to_ternary(model, Policy(), ThresholdVersion())
    ids = torch.randint(0, vocab, (4, 128))
    states, logits = 16 * shape.parameters, 4 * ids.numel() * vocab
    estimate = shape.training_bytes(4, 128, ternary=ternary) - states
    # One of three vocabulary rows is kept, two live around the loss; the final norm is not counted.
    assert estimate - 2 * logits == pytest.approx(kept_bytes(model, ids), rel=0.06)


def test_half_precision_and_a_smaller_batch_need_less() -> None:
    shape = PRESETS["bitnet-3b"]
    full = shape.training_bytes(8, 2048)
    assert shape.training_bytes(8, 2048, bytes_per_value=2) < full
    assert shape.training_bytes(1, 2048) < full
    assert shape.training_bytes(8, 2048, ternary=False) < full
    assert full > 16 * shape.parameters


def test_known_figures_of_the_3b_shape() -> None:
    shape = PRESETS["bitnet-3b"]
    assert (shape.hidden, shape.ffn, shape.layers, shape.heads) == (3200, 8640, 26, 32)
    assert shape.kv_bytes_per_token() == 2 * 26 * 3200 * 2
    assert shape.serving_bytes_full() / shape.serving_bytes_ternary() == pytest.approx(6.78, 0.01)
