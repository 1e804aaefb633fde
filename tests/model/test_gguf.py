"""GGUF files as checkpoints: the same network and the same tokens, or a refusal by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from workbench.data.document import Document
from workbench.data.tokenizer import load_tokenizer, tokenizer_name, train_tokenizer
from workbench.engine.engine import Engine
from workbench.errors import ConfigError
from workbench.export.gguf_file import write_gguf
from workbench.gguf_reader import TURNED, is_gguf, read_gguf
from workbench.model.build import build_model
from workbench.model.checkpoint import checkpoint_config, load_checkpoint
from workbench.model.ends import end_tokens
from workbench.pilot.sections.data import Data
from workbench.pilot.sections.model import Model
from workbench.ternary import to_ternary
from workbench.ternary.packed import load_packed, save_packed

gguf = pytest.importorskip("gguf")

SMOLLM2 = Path(__file__).parents[2] / "build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "It's 2026: the naïve café,\n\n  x = f(a_b) + 3.5e-4;\tEnd of the story  "
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {
    "llama": lambda **more: LlamaConfig(**SHAPE, **more),
    "llama, tied": lambda **more: LlamaConfig(**SHAPE, **more, tie_word_embeddings=True),
    "llama 3": lambda **more: LlamaConfig(
        **SHAPE, **more,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    ),
    "qwen2": lambda **more: Qwen2Config(**SHAPE, **more),
    "qwen3": lambda **more: Qwen3Config(**SHAPE, **more),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Document("a", "test", (TEXT + " the then there to of in ") * 20)], 300)


def network(family: str, tokenizer) -> PreTrainedModel:
    """bf16 values, as the file keeps them."""
    torch.manual_seed(5)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = FAMILIES[family](vocab_size=len(tokenizer) + 3, **ids)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                torch.nn.init.normal_(parameter, mean=0.5, std=0.1)
            parameter.copy_(parameter.bfloat16())
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_comes_back_as_the_model_it_was_written_from(
    family: str, tokenizer, tmp_path: Path
) -> None:
    model, path = network(family, tokenizer), tmp_path / "small.gguf"
    write_gguf(model, tokenizer, path, name="small")
    assert tokenizer_name(Data(), str(path)) == str(path)
    words = load_tokenizer(str(path))
    for text in (TEXT, " WE'LL see\r\n\r\n 100 日本語 🙂", ""):
        ids = words(text, add_special_tokens=False).input_ids
        assert ids == tokenizer(text, add_special_tokens=False).input_ids
        assert words.decode(ids) == text
    assert words.eos_token_id == tokenizer.eos_token_id and len(words) == len(tokenizer)
    section, said = Model(checkpoint=str(path)), []
    loaded = build_model(section, len(words), 64, seed=1, say=said.append).eval()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert [text for text in said if "3 spare rows" in text] == said
    ids = torch.tensor([words(TEXT).input_ids[:40]])
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)
    assert loaded.config.eos_token_id == model.config.eos_token_id
    config = checkpoint_config(str(path))
    assert config is not None and config.tie_word_embeddings is model.config.tie_word_embeddings


def test_an_end_of_turn_of_the_generation_goes_into_the_file_and_comes_back(
    tokenizer, tmp_path: Path
) -> None:
    model = network("llama", tokenizer)
    model.save_pretrained(tmp_path / "c")
    ends = [tokenizer.eos_token_id, 7]
    GenerationConfig(eos_token_id=ends).save_pretrained(tmp_path / "c")
    path = tmp_path / "small.gguf"
    write_gguf(load_checkpoint(str(tmp_path / "c")), tokenizer, path, name="small")
    assert read_gguf(path).get("tokenizer.ggml.eot_token_id") == 7
    loaded = load_checkpoint(str(path))
    assert loaded.config.eos_token_id == ends == end_tokens(loaded.generation_config)


def test_rounded_blocks_are_unpacked_and_said(tokenizer, tmp_path: Path) -> None:
    """llama.cpp's own types, as people download them."""
    from gguf.quants import quantize

    model, path = network("llama, tied", tokenizer), tmp_path / "small.gguf"
    write_gguf(model, tokenizer, path, name="small")
    file = read_gguf(path)
    tensor = file.tensors["blk.0.ffn_up.weight"]
    for kind in (gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0):
        values = tensor.values()
        data = quantize(values, kind).reshape(-1)
        held = type(tensor)(path, tensor.name, int(kind), tensor.shape, data)
        assert np.abs(held.values() - values).max() < 0.1 * np.abs(values).max()


def write_fields(path: Path, architecture: str = "llama", **fields: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        writer.add_string(key.replace("__", "."), value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_cannot_be_read_is_refused_by_name(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with pytest.raises(ConfigError, match=r"architecture gemma3\n.*llama, qwen2"):
        load_checkpoint(str(write_fields(path, "gemma3")))
    with pytest.raises(ConfigError, match=r"no field llama\.embedding_length"):
        load_checkpoint(str(write_fields(path)))
    turned = {"prism__hadamard__block": "1024", "general__name": "Some model"}
    with pytest.raises(ConfigError, match=r"\(Some model\) needs a Hadamard.*prism\.hadamard"):
        load_checkpoint(str(write_fields(path, **turned)))
    with pytest.raises(ConfigError, match=r"Bonsai 2 27B.*its block types do not say so"):
        load_checkpoint(str(write_fields(path, general__name="Bonsai 2 27B")))
    path.write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="cannot be read as a GGUF file"):
        load_checkpoint(str(path))
    with pytest.raises(ConfigError, match=rf"has no config\.json[\s\S]*name {path}"):
        load_checkpoint(str(tmp_path))
    write_fields(path, tokenizer__ggml__model="t5")
    with pytest.raises(ConfigError, match="the tokenizer t5"):
        load_tokenizer(str(path))


def test_a_file_that_is_cut_off_is_refused(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(network("llama", tokenizer), tokenizer, path, name="a")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ConfigError, match="cut off"):
        load_checkpoint(str(path))


def test_a_ternary_file_is_no_checkpoint_to_train_from(tokenizer, tmp_path: Path) -> None:
    model = network("llama", tokenizer)
    report = to_ternary(model)
    save_packed(model, tmp_path / "p", report.precisions, report.threshold)
    path = tmp_path / "a.gguf"
    write_gguf(load_packed(tmp_path / "p"), tokenizer, path, "q2_0", name="a")
    with pytest.raises(ConfigError, match=r"masters are gone\n.*\n.*as model\.ternary"):
        load_checkpoint(str(path))


@pytest.mark.parametrize(
    ("name", "turned"),
    [
        ("Ternary-Bonsai-2-27B-PQ2_0", True), ("Bonsai 2 27B", True), ("bonsai_v2_4B", True),
        ("Bonsai2-8B", True), ("Ternary-Bonsai-27B", False), ("Ternary-Bonsai-1.7B", False),
        ("Bonsai-2B", False), ("Bonsai 2.5B", False), ("Qwen3-2-bonsai", False),
    ],
)  # fmt: skip
def test_the_second_bonsai_generation_is_known_by_its_name(name: str, turned: bool) -> None:
    assert bool(TURNED.search(name)) is turned


def test_a_name_of_the_hub_is_no_file() -> None:
    assert is_gguf("models/A.GGUF") and not is_gguf("hf:owner/a.gguf") and not is_gguf("folder")


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.exists(), reason="make smollm2 fetches it")
def test_smollm2_says_that_the_capital_of_france_is_paris() -> None:
    tokenizer = load_tokenizer(str(SMOLLM2))
    model = load_checkpoint(str(SMOLLM2))
    ids = tokenizer("The capital of France is", add_special_tokens=False).input_ids
    theirs = AutoModelForCausalLM.from_pretrained(
        SMOLLM2.parent, gguf_file=SMOLLM2.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0]
        found = model(torch.tensor([ids])).logits[0]
    assert torch.allclose(found, wanted, atol=1e-3), float((found - wanted).abs().max())
    with Engine.from_model(model, context=64, kv_dtype="float32") as engine:
        logits = torch.from_numpy(engine.logits(ids))
    assert float((logits - wanted).norm() / wanted.norm()) < 1e-2
    assert tokenizer.decode([int(logits[-1].argmax())]) == " Paris"


def test_a_file_is_parsed_once_and_another_in_its_place_anew(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "one.gguf"
    for tokens in (["a"], ["a", "b"]):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_token_list(tokens)
        writer.add_tensor("one", np.ones(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        first = read_gguf(path)
        assert read_gguf(path) is first
        assert first.get("tokenizer.ggml.tokens") == tokens
