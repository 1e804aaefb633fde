"""Models from the pilot's section, and an error for every section that gives none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig

from workbench.errors import ConfigError
from workbench.model.build import build_model, empty_model, preset_config
from workbench.model.checkpoint import load_checkpoint, require_fit
from workbench.pilot.sections.model import Model, Policy
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.packed import save_packed

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
TINY = Model(preset="tiny-1m", overrides=SMALL)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    build_model(TINY, 300, 64, seed=1).save_pretrained(tmp_path / "c")
    return tmp_path / "c"


def test_a_preset_with_overrides_and_the_tokenizers_vocabulary() -> None:
    model = build_model(TINY, 300, 4096, seed=1)
    assert model.training and model.config.vocab_size == 300
    assert model.config.hidden_size == 32 and model.config.max_position_embeddings == 4096
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 300)


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    one = build_model(TINY, 300, 64, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "the global random state is left alone"
    torch.rand(3)
    same, other = (build_model(TINY, 300, 64, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(v, same[k]) for k, v in one.items())
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"preset": "tiny-2n"}, "model.preset tiny-2n: unknown; did you mean tiny-2m"),
        ({"overrides": {"hiden_size": 64}}, "model.overrides.hiden_size.*did you mean hidden_size"),
        ({"overrides": {"hidden_size": "64"}}, "expected int, got str"),
        ({"overrides": {"num_attention_heads": 5}}, "not a multiple"),
        ({"overrides": {"num_attention_heads": 0}}, "give no model"),
        ({"overrides": {"vocab_size": 100}}, "the tokenizer has 300 tokens"),
        ({"overrides": {"vocab_size": "abc"}}, "got 'abc', but the tokenizer has 300 tokens"),
        ({"overrides": {"hidden_size": 0}}, "hidden_size is 0"),
        ({"overrides": {"intermediate_size": 0}}, "intermediate_size is 0"),
        ({"overrides": {"num_key_value_heads": -3}}, "num_key_value_heads is -3"),
        (
            {"overrides": {"num_attention_heads": 4, "num_key_value_heads": 3}},
            "4 attention heads cannot share 3 key-value heads",
        ),
        ({"overrides": {"attention_dropout": 5.0}}, "attention_dropout is 5.0"),
        ({"checkpoint": "/nowhere/at/all"}, "/nowhere/at/all is no folder"),
        ({"checkpoint": "c", "overrides": {"hidden_size": 64}}, "a checkpoint keeps the shape"),
    ],
)
def test_a_section_that_gives_no_model_says_why(section: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(Model(**section), 300, 64, seed=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_act": "foo"}, "KeyError.*foo"),
        ({"pad_token_id": 5000}, "give no model: .*[Pp]adding"),
        ({"rope_parameters": {"rope_type": "foo"}}, "give no model: .*foo"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_only_the_models_code_refuses_shows_without_weights(
    overrides: dict, message: str
) -> None:
    section = Model(preset="tiny-1m", overrides=overrides)
    with pytest.raises(ConfigError, match=message):
        empty_model(section, preset_config(section, 300, 64))


def test_an_empty_model_of_many_gigabytes_has_its_modules() -> None:
    section = Model(preset="llama-3-70b")
    model = empty_model(section, preset_config(section, 300, 64))
    assert model.num_parameters() > 6e10
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_larger_vocabulary_may_be_asked_for() -> None:
    section = Model(preset="tiny-1m", overrides={**SMALL, "vocab_size": 320})
    assert build_model(section, 300, 64, seed=1).config.vocab_size == 320


def test_a_checkpoint_comes_back_with_its_weights(checkpoint: Path) -> None:
    section = Model(checkpoint=str(checkpoint))
    model = build_model(section, 300, 64, seed=7)
    expected = build_model(TINY, 300, 64, seed=1).state_dict()
    assert model.training
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert build_model(section, 290, 64, seed=7).config.vocab_size == 300, "padded: allowed"


@pytest.mark.filterwarnings("ignore")
def test_a_head_of_its_own_is_kept_although_the_config_ties_it(checkpoint: Path) -> None:
    change_the_head(checkpoint)
    model = load_checkpoint(str(checkpoint))
    assert not model.config.tie_word_embeddings
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    model.save_pretrained(checkpoint)
    again = load_checkpoint(str(checkpoint))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_vocabulary_or_context_that_does_not_fit_is_refused(checkpoint: Path) -> None:
    section = Model(checkpoint=str(checkpoint))
    with pytest.raises(ConfigError, match="300 rows in its embedding, the tokenizer has 301"):
        build_model(section, 301, 64, seed=1)
    with pytest.raises(ConfigError, match="takes 1024 positions, 2048 are asked"):
        build_model(section, 300, 2048, seed=1)
    config = LlamaConfig(**SMALL, num_attention_heads=4, vocab_size=5000)
    with pytest.raises(ConfigError, match=r"set data\.tokenizer"):
        require_fit(config, 300, 64, str(checkpoint), trained_tokenizer=True)


def change_the_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def add_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.norm.weight"] = torch.ones(32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def change_the_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))


def pickled(content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return damage


def index(content: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return damage


def configured(**fields: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return damage


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_tensor, r"lacks 1 tensor: model\.layers\.0\.mlp\.up_proj\.weight"),
        (add_a_tensor, r"beyond its architecture, 1 tensor: .*up_proj\.norm\.weight"),
        (truncate, "cannot be loaded"),
        (change_the_shape, "shape|cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds a list"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (pickled(b"garbage"), "cannot be loaded"),
        (pickled(b""), "cannot be loaded: EOFError|cannot be loaded: Ran out of input"),
        (index("{}"), "cannot be loaded: KeyError"),
        (index("[]"), "cannot be loaded"),
        (configured(hidden_act="foo"), "cannot be loaded: KeyError.*foo"),
        (configured(rope_parameters={"rope_type": "foo"}), "cannot be loaded: .*foo"),
        (configured(num_hidden_layers="2"), "'num_hidden_layers': .*expected int, got str"),
        (not_a_number, r"model\.norm\.weight holds values that are not finite"),
        *[
            (configured(quantization_config={"quant_method": method}), f"quantised with {method}")
            for method in ("gptq", "awq", "bitsandbytes")
        ],
    ],
)
def test_a_damaged_checkpoint_is_refused(checkpoint: Path, damage, message: str) -> None:
    damage(checkpoint)
    with pytest.raises(ConfigError, match=message) as error:
        load_checkpoint(str(checkpoint))
    assert str(checkpoint) in str(error.value)


def test_a_quantiser_that_is_not_installed_is_no_fault_of_the_program(monkeypatch) -> None:
    def quantised(name, **_):
        raise ImportError("Loading a GPTQ quantized model requires gptqmodel")

    monkeypatch.setattr(AutoConfig, "from_pretrained", quantised)
    with pytest.raises(ConfigError, match=r"gptqmodel\n.*or give the unquantised checkpoint"):
        load_checkpoint("hf:owner/name")


def test_a_packed_model_is_no_checkpoint_to_train_from(tmp_path: Path) -> None:
    model = build_model(TINY, 300, 64, seed=1)
    report = to_ternary(model, Policy(), ThresholdVersion())
    save_packed(model, tmp_path / "p", report.precisions, report.threshold)
    with pytest.raises(ConfigError, match=r"masters are gone\n.*\n.*as model\.ternary"):
        load_checkpoint(str(tmp_path / "p"))


def test_a_hub_model_that_cannot_be_had_says_what_to_do(monkeypatch) -> None:
    def offline(name, **_):
        raise OSError(f"We couldn't connect to load {name}.\nCheck your connection.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(ConfigError, match=r"hf:owner/name cannot be loaded.*owner/name\.") as error:
        load_checkpoint("hf:owner/name")
    assert "offline, download it where there is a network" in str(error.value)
