"""Adapters on a frozen ternary base: they learn, it does not, and they know where they belong."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ternary_kernels import quantizers
from transformers import PreTrainedModel

from workbench.errors import ConfigError
from workbench.ternary import ThresholdVersion, bit_linears, to_ternary
from workbench.ternary.master import load_master, save_master
from workbench.train.arm import FINAL
from workbench.train.lora import add_lora, load_lora, save_lora, train_lora

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def master(small: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "ternary_master"
    save_master(small.make_model("ternary", small.make_setup()), folder)
    return folder


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(32).view(2, 16)
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


def digest(model: PreTrainedModel) -> int:
    total = 0
    for name, value in sorted(model.state_dict().items()):
        if "lora_" not in name:
            total = zlib.crc32(value.contiguous().numpy(), total)
    return total


def test_adapters_learn_come_back_and_leave_the_base_alone(
    small: SimpleNamespace, master: Path, tmp_path: Path
) -> None:
    setup = replace(small.make_setup(steps=20, lr=2e-2, evaluations=2), new_norms=True)
    base = load_master(master)
    before, untouched = logits(base), digest(base)
    model = add_lora(base, rank=2, targets=("q_proj", "down_proj"))
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learning) == 8 and all("lora_" in name for name in learning)

    progress = small.StoppingProgress(tmp_path / "events.jsonl", "train_qat")
    evaluator = train_lora(model, setup, tmp_path / "run", progress)
    loss = evaluator.telemetry.frame("loss")
    assert set(loss["strength"]) == {1.0} and set(loss["phase"]) == {"finetune"}
    assert loss["loss"].iloc[-4:].mean() < loss["loss"].iloc[:4].mean()
    assert not evaluator.telemetry.frame("layers")["flip_rate"].fillna(0).any()
    assert set(evaluator.telemetry.frame("evaluations")["weights"]) == {"ternary"}
    after = logits(model)
    assert (after - before).abs().max() > 1e-3 and digest(base) == untouched

    save_lora(model, tmp_path / "adapter")
    loaded = load_lora(load_master(master), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), after, rtol=0, atol=0)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_training_adapters_resumes_bit_for_bit(
    small: SimpleNamespace, master: Path, tmp_path: Path
) -> None:
    setup = small.make_setup(steps=8, evaluations=1, save_every=3)
    for name, stop_at in (("straight", None), ("killed", 5), ("killed", None)):
        with torch.random.fork_rng():
            torch.manual_seed(1)  # of A
            model = add_lora(load_master(master), rank=2)
        progress = small.StoppingProgress(tmp_path / name / "events.jsonl", "train_qat")
        progress.stop_at = stop_at
        try:
            train_lora(model, setup, tmp_path / name, progress)
        except small.Stopped:
            assert stop_at
    finals = [(tmp_path / name / FINAL).read_bytes() for name in ("straight", "killed")]
    assert finals[0] == finals[1]


def test_an_adapter_goes_onto_its_own_base_only(
    small: SimpleNamespace, master: Path, tmp_path: Path
) -> None:
    save_lora(add_lora(load_master(master), rank=2), tmp_path)
    setup = small.make_setup()
    other = small.make_model("full_precision", setup)
    to_ternary(other, small.MODEL.policy, ThresholdVersion(granularity="row"))
    with pytest.raises(ConfigError, match=r"absmean/tensor.*but absmean/row.* is asked"):
        load_lora(other, tmp_path)
    other = load_master(master)
    with torch.no_grad():
        weight = bit_linears(other)[3][1].weight
        weight[0, 0] = -10 * weight.abs().max()
    with pytest.raises(ConfigError, match="trained on a base with checksum"):
        load_lora(other, tmp_path)
    marker = tmp_path / "ternary.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"kind": "packed"}))
    with pytest.raises(ConfigError, match="allowed: kind 'adapter'"):
        load_lora(load_master(master), tmp_path)


def test_an_adapter_goes_onto_its_base_on_a_device_that_sums_in_another_order(
    master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_lora(add_lora(load_master(master), rank=2), tmp_path)
    real = quantizers.per_cell
    monkeypatch.setattr(quantizers, "per_cell", lambda *cell: real(*cell) * (1 + 2**-22))
    assert load_lora(load_master(master), tmp_path)


def test_what_cannot_take_adapters_is_refused(
    small: SimpleNamespace, master: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no trainable ternary layers"):
        add_lora(small.make_model("full_precision", small.make_setup()))
    with pytest.raises(ConfigError, match=r"targets w_proj.*\n.*allowed: down_proj, "):
        add_lora(load_master(master), targets=("q_proj", "w_proj"))
    monkeypatch.setattr("workbench.train.lora.importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install peft"):
        add_lora(load_master(master))
