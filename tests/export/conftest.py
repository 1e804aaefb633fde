"""Small ternary models with their tokenizer, packed as a stage packs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from workbench.data.document import Document
from workbench.data.tokenizer import train_tokenizer
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.packed import save_packed

TEXT = "It's 2026: 12345 tokens — naïve café,\n\n  x = f(a_b) + 3.5e-4;\tEnd of the story  "
SHAPE = {
    # 256 inputs suit every type, 320 those with blocks of 64 and 32
    "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 2, "head_dim": 32,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    text = (TEXT + " the then there to tok token tokens and story in an on of it is ") * 20
    return train_tokenizer([Document("a", "test", text)], 320)


@pytest.fixture
def packed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """A folder of a family's model: q of the first layer and the tables INT8, v in high precision,
    the rest ternary; ``granularity`` of the scales, other fields of the configuration."""

    def make(family: str = "llama", granularity: str = "tensor", **fields) -> Path:
        torch.manual_seed(5)
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        fields = {**SHAPE, "vocab_size": len(tokenizer) + 2, **ids, **fields}
        model = AutoModelForCausalLM.from_config(CONFIGS[family](**fields)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                torch.nn.init.normal_(parameter, mean=0.5, std=0.1)
        threshold = ThresholdVersion(granularity=granularity)
        policy = Policy(
            ternary=["model.layers.*"],
            int8=["model.layers.0.self_attn.q_proj", "*embed_tokens", "*lm_head"],
            high_precision=["model.layers.0.self_attn.v_proj"],
        )
        report = to_ternary(model, policy, threshold)
        folder = tmp_path / f"{family}-{granularity}"
        save_packed(model, folder, report.precisions, threshold, tokenizer)
        return folder

    return make
