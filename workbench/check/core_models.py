"""Small models that a core is checked with: every family, precision and scale the kernels know.

Their weights are drawn so that a mistake shows: four times as large as a fresh model's, for the
attention to matter, and norms and biases drawn as well, since ones and zeros would hide one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from workbench.ternary import ThresholdVersion
from workbench.ternary.packed import save_packed
from workbench.ternary.policy import Precision

SHAPE = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": None,
    "bos_token_id": None,
}
WORDS = 101


@dataclass(frozen=True)
class Specimen:
    """family: a model type of transformers. linears: what all linear layers of the body are held
    in; tables: embedding and head. changed: layers by the end of their names -> another precision.
    needed: a core that cannot run it is none for a pilot; the others it may refuse."""

    name: str
    family: str
    linears: Precision
    tables: Precision = "high_precision"
    granularity: Literal["tensor", "row", "group128"] = "tensor"
    fields: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Precision] = field(default_factory=dict)
    needed: bool = False

    def write(self, folder: Path, *, damaged: bool = False) -> Path:
        """A packed model folder. damaged: a norm of its last layer holds NaN."""
        threshold = ThresholdVersion(granularity=self.granularity)
        model = self._model()
        if damaged:
            norm = model.get_parameter("model.layers.1.post_attention_layernorm.weight")
            norm.data[0] = torch.nan
        save_packed(model, folder, self._precisions(model), threshold)
        return folder

    def _model(self) -> PreTrainedModel:
        config = AutoConfig.for_model(self.family, **{**SHAPE, **self.fields})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.ndim == 1:
                        drawn = 0.3 * torch.randn_like(parameter)
                        parameter.copy_(("norm" in name) + drawn)
                    else:
                        parameter.mul_(4.0)
        return model

    def _precisions(self, model: PreTrainedModel) -> dict[str, Precision]:
        found: dict[str, Precision] = {}
        for name, module in model.named_modules():
            table = name.endswith(("embed_tokens", "lm_head"))
            if not isinstance(module, nn.Linear | nn.Embedding):
                continue
            own = [of for end, of in self.changed.items() if name.endswith(end)]
            found[name] = own[0] if own else self.tables if table else self.linears
        return found


SPECIMENS = (
    Specimen(
        "full precision",
        "llama",
        "high_precision",
        fields={"tie_word_embeddings": True},
        needed=True,
    ),
    Specimen("ternary, a scale a tensor", "llama", "ternary", needed=True),
    Specimen(
        "ternary, a scale a row, sliding window",
        "mistral",
        "ternary",
        granularity="row",
        fields={"sliding_window": 7},
    ),
    Specimen("ternary, a scale for 128 inputs, biases", "qwen2", "ternary", granularity="group128"),
    Specimen(
        "ternary, norms before o and down, squared ReLU",
        "bitnet",
        "ternary",
        "int8",
        fields={"hidden_act": "relu2", "tie_word_embeddings": True},
    ),
    Specimen("INT8, norms of heads", "qwen3", "int8", "int8", fields={"head_dim": 24}),
    Specimen("INT4", "llama", "int4", "int8"),
    Specimen(
        "a mixture of precisions",
        "llama",
        "ternary",
        "int8",
        changed={"0.self_attn.q_proj": "int8", "v_proj": "high_precision", "1.mlp.up_proj": "int4"},
    ),
)
