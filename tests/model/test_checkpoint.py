"""Every kind of checkpoint that teams bring is taken in rightly, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitNetConfig, GenerationConfig, LlamaConfig

from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.errors import ConfigError
from workbench.export.bitnet_folder import write_bitnet_folder
from workbench.model.build import build_model
from workbench.model.checkpoint import checkpoint_config, load_checkpoint, normalise
from workbench.model.ends import end_tokens
from workbench.pilot.sections.model import Model
from workbench.ternary import to_ternary
from workbench.ternary.packed import load_packed, save_packed

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 60, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def network(kind: type = LlamaConfig, **changes) -> nn.Module:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(kind(**SHAPE | changes)).eval()


def configured(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    network().save_pretrained(tmp_path / "c")
    return tmp_path / "c"


@pytest.mark.parametrize("mode", ["online", None])
def test_bitnet_masters_give_a_baseline_in_full_precision(tmp_path: Path, mode: str | None) -> None:
    """With the quantiser that their configuration names, the baseline would be ternary."""
    model = network(BitNetConfig).bfloat16()
    model.save_pretrained(tmp_path / "c")
    named = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode}
    configured(tmp_path / "c", quantization_config=named)
    said: list[str] = []
    loaded = load_checkpoint(str(tmp_path / "c"), said.append)
    assert [type(m) for m in loaded.modules() if isinstance(m, nn.Linear)] == [nn.Linear] * 15
    plain = network(BitNetConfig)
    plain.load_state_dict(model.float().state_dict())
    assert torch.equal(loaded(IDS).logits, plain(IDS).logits)
    assert len(said) == 1 and "holds master weights" in said[0] and "left out" in said[0]
    assert getattr(checkpoint_config(str(tmp_path / "c")), "quantization_config", None) is None
    loaded.save_pretrained(tmp_path / "full_precision")
    assert "quantization_config" not in (tmp_path / "full_precision/config.json").read_text()
    report = to_ternary(loaded)
    save_packed(loaded, tmp_path / "ternary", report.precisions, report.threshold)
    with (
        Engine.load(tmp_path / "full_precision") as full,
        Engine.load(tmp_path / "ternary") as ternary,
    ):
        linear = sum(loaded.get_submodule(n).weight.numel() for n in report.named("ternary"))
        saved = full.weight_bytes - ternary.weight_bytes
        assert saved > 2 * linear * 0.8, "of bf16, an eighth is left and some padding"


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear"])
@pytest.mark.parametrize("named", [True, False])
def test_packed_bitnet_folders_have_no_masters(
    tmp_path: Path, linear_class: str, named: bool
) -> None:
    bias = {"attention_bias": True} if linear_class == "bitlinear" else {}
    model = network(**bias)
    report = to_ternary(model)
    save_packed(model, tmp_path / "p", report.precisions, report.threshold)
    folder = tmp_path / "c"
    write_bitnet_folder(load_packed(tmp_path / "p"), None, folder)
    fields = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert fields["linear_class"] == linear_class
    if not named:
        configured(folder, quantization_config=None)
    cure = r"its masters are gone\n.*\n.*measure it as model\.ternary, or name another"
    for look in (checkpoint_config, load_checkpoint):
        with pytest.raises(ConfigError, match=cure):
            look(str(folder))


def test_packed_weights_without_safetensors_are_refused_too(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.zeros(12, 32, dtype=torch.uint8)
    tensors[f"{name}_scale"] = torch.ones(1)
    (checkpoint / "model.safetensors").unlink()
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="its masters are gone"):
        load_checkpoint(str(checkpoint))


def test_an_end_of_turn_that_only_the_generation_names_ends_a_text(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Llama 3's and Qwen's chat models: config.json has the end of a document alone."""
    request = GenerationRequest((3, 1, 4), max_tokens=4)
    with Engine.load(checkpoint) as engine:
        first = engine.generate(request).tokens
    assert len(first) == 4
    GenerationConfig(eos_token_id=[first[2], 1]).save_pretrained(checkpoint)
    model = load_checkpoint(str(checkpoint))
    assert model.config.eos_token_id == [1, first[2]] == end_tokens(model.generation_config)
    report = to_ternary(load_checkpoint(str(checkpoint)))
    save_packed(model, tmp_path / "packed", report.precisions, report.threshold)
    assert load_packed(tmp_path / "packed").config.eos_token_id == [1, first[2]]
    for load in (lambda: Engine.load(checkpoint), lambda: Engine.from_model(model)):
        with load() as engine:
            ended = engine.generate(request)
        assert (ended.tokens, ended.finish_reason) == (first[: first.index(first[2])], "stop")


@pytest.mark.parametrize("content", ["{", "[3]", '{"eos_token_id": ["</s>"]}'])
def test_a_damaged_generation_config_is_not_passed_over(checkpoint: Path, content: str) -> None:
    (checkpoint / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        load_checkpoint(str(checkpoint))


@pytest.mark.parametrize(
    ("kind", "cure"), [("own_kind", "of another architecture"), ("llama", "take auto_map out")]
)
def test_code_of_a_checkpoint_is_refused_once_and_nothing_is_asked(
    checkpoint: Path, monkeypatch, kind: str, cure: str
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    named = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"}
    configured(checkpoint, model_type=kind, auto_map=named)
    (checkpoint / "code.py").write_text("raise SystemExit('the code was run')")
    for look in (checkpoint_config, load_checkpoint):
        with pytest.raises(ConfigError, match=rf"code of its own \(auto_map[^$]*{cure}"):
            look(str(checkpoint))


def test_spare_rows_are_accepted_and_said(tmp_path: Path) -> None:
    network(vocab_size=60 + 2385).save_pretrained(tmp_path / "c")
    said: list[str] = []
    section = Model(checkpoint=str(tmp_path / "c"))
    model = build_model(section, 60, 64, seed=1, say=said.append)
    assert model.config.vocab_size == 2445
    assert said == [
        f"model.checkpoint {tmp_path / 'c'} has 2,445 rows in its embedding, the tokenizer 60 "
        "tokens: the 2,385 spare rows are kept as they are"
    ]


def test_dead_matrices_are_said_when_they_are_loaded(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    for name in ("gate", "up", "down"):
        tensors[f"model.layers.0.mlp.{name}_proj.weight"].zero_()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    said: list[str] = []
    load_checkpoint(str(checkpoint), said.append)
    assert len(said) == 1 and "3 of its matrices hold only zeros" in said[0]
    assert "model.layers.0.mlp.gate_proj.weight" in said[0]


def test_what_came_out_is_asserted_layer_by_layer() -> None:
    """A layer that rounds what it multiplies is no full precision, whatever config.json says."""

    class Rounding(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight.sign() * self.weight.abs().mean())

    class Other(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T

    model = network()
    model.model.layers[1].mlp.up_proj.__class__ = Other
    normalise(model, "c", None)
    model.model.layers[1].mlp.up_proj.__class__ = Rounding
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj is quantised"):
        normalise(model, "c", None)
    with pytest.raises(ConfigError, match=r"embed_tokens\.weight is quantised"):
        normalise(network().bfloat16(), "c", None)
