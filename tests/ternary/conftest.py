"""Small random models of three architectures, and a batch of token ids."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 136,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=False),  # biases in q, k, v
    "mistral": MistralConfig(**SMALL, sliding_window=16),
}


def small_model(family: str) -> PreTrainedModel:
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(params=sorted(CONFIGS))
def model(request) -> PreTrainedModel:
    return small_model(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return small_model("llama")


@pytest.fixture
def qwen2() -> PreTrainedModel:
    return small_model("qwen2")


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 97, (2, 17), generator=torch.Generator().manual_seed(2))
