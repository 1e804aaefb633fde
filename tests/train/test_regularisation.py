"""Adaptive regularisation: the formula, its telemetry, and a resume that changes no bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from workbench.records.events import Progress
from workbench.ternary import BitLinear, ThresholdVersion
from workbench.ternary.quantize import quantize_weight
from workbench.train.arm import FINAL, train_arm
from workbench.train.regularisation import Regularisation
from workbench.train.telemetry import Telemetry


def layer_of(weight: torch.Tensor, **threshold: object) -> BitLinear:
    layer = BitLinear(*reversed(weight.shape), threshold=ThresholdVersion(**threshold), bias=False)
    layer.weight.data = weight.clone()
    return layer


@pytest.mark.parametrize("kind", ["l2", "pull"])
@pytest.mark.parametrize("rotation", ["none", 128])
def test_the_move_is_that_of_the_formula(kind: str, rotation: str | int) -> None:
    torch.manual_seed(3)
    weight = torch.randn(8, 64)
    layer = layer_of(weight, granularity="row", rotation=rotation)
    regularisation = Regularisation(kind, 0.1, [("one", layer)])
    regularisation.look(10)
    regularisation.apply(0.5)
    assert torch.equal(layer.weight, weight), "codes that rest are left alone"
    codes, _ = layer.ternarized()
    layer.weight.data[0] = -layer.weight.data[0]  # half of a row's codes or more turn over
    moved = float((layer.ternarized()[0] != codes).float().mean())
    weight = layer.weight.detach().clone()
    regularisation.look(20)
    factor = float(regularisation.factors["one"])
    scaled = weight if rotation == "none" else _turned(weight)
    scale = scaled.abs().mean(1, keepdim=True)
    distance = float(((scaled / scale).abs() - 0.5).abs().mean())
    assert factor == pytest.approx(min(4.0, moved / 0.01 * 0.25 / distance), rel=1e-5)
    regularisation.apply(0.5)
    rate = 0.5 * 0.1 * factor
    goal = torch.zeros_like(weight)
    if kind == "pull":
        goal = quantize_weight(weight, layer.threshold)
        goal = goal if rotation == "none" else _turned(goal)
    torch.testing.assert_close(layer.weight.detach(), weight + rate * (goal - weight))


def _turned(x: torch.Tensor) -> torch.Tensor:
    signs = [[1 - 2 * (bin(i & j).count("1") % 2) for j in range(64)] for i in range(64)]
    return x @ torch.tensor(signs, dtype=torch.float32) / 8


def test_a_layer_without_threshold_is_left_and_the_ramp_counts() -> None:
    layer = layer_of(torch.randn(4, 16))
    regularisation = Regularisation("l2", 0.1, [("one", layer)])
    regularisation.factors["one"] = torch.tensor(2.0)
    before = layer.weight.detach().clone()
    layer.strength = 0.0
    regularisation.apply(1.0)
    assert torch.equal(layer.weight, before)
    layer.strength = 0.5
    regularisation.apply(1.0)
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.1 * 0.5 * 2.0))


def test_a_training_leaves_its_strength_and_goes_on_alike(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    setup = small.make_setup(regularisation="pull", regularisation_strength=5.0, lr=2e-2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    progress = Progress(tmp_path / "events.jsonl", "train_qat")
    model = small.make_model("ternary", setup)
    train_arm("ternary", model, setup, whole, progress)
    rows = Telemetry(whole / "telemetry", 10**9).frame("regularisation")
    assert rows["step"].tolist() == [10, 20]
    assert rows["flips"].iloc[0] == 0 and 0 < rows["flips"].iloc[1] <= 1
    last = rows.iloc[1]
    assert 0 < last["least"] <= last["strength"] <= last["most"] <= 5.0 * 4

    stopping = small.StoppingProgress(tmp_path / "events.jsonl", "train_qat")
    stopping.stop_at = 23
    with pytest.raises(small.Stopped):
        train_arm("ternary", small.make_model("ternary", setup), setup, cut, stopping)
    train_arm("ternary", small.make_model("ternary", setup), setup, cut, progress)
    ends = [safetensors.torch.load_file(folder / FINAL) for folder in (whole, cut)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    plain = small.make_setup(lr=2e-2)
    without = small.make_model("ternary", plain)
    train_arm("ternary", without, plain, tmp_path / "plain", progress)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(without.get_parameter(name), ends[0][name]), "it moves weights"
