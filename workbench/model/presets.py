"""Shapes of Llama-type networks as data, and the arithmetic that follows from a shape.

The arithmetic answers, before anything is allocated, how many bytes a model needs for serving
and for training. It counts what must be resident; it leaves out allocator slack, the Python
process (about 0.5 GB with torch) and, for serving, the KV cache, which has its own figure.

Sources of the shapes: BitNet b1.58 training tips (700M to 3.9B), the BitNet b1.58 2B4T report,
the configs of Llama 3.2 3B and Llama 3 70B, LLaMA-1 33B. The tiny and small ones are ours; they
tie the embedding to the head, because at that size the vocabulary outweighs the network.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ADAM_BYTES = 16
"""Training bytes a parameter: float32 weight, gradient and two Adam moments."""


@dataclass(frozen=True)
class Shape:
    """A Llama-type decoder.

    hidden, ffn: widths. layers, heads, kv_heads: counts. vocab: rows of the embedding when no
    tokenizer says otherwise. context: positions. tied: the head is the embedding.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    rope_theta: float = 10_000.0
    tied: bool = False
    head_width: int | None = None
    """Of a head where it is not hidden / heads (Qwen 3)."""

    @classmethod
    def of_config(cls, config: PretrainedConfig) -> Shape:
        """Of a Llama-type checkpoint, from its configuration alone."""
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            config.vocab_size,
            getattr(config, "max_position_embeddings", None) or 2048,
            tied=bool(config.tie_word_embeddings),
            head_width=getattr(config, "head_dim", None),
        )

    def with_layers(self, layers: int) -> Shape:
        """The same network with fewer blocks."""
        return replace(self, layers=layers)

    def with_vocab(self, vocab: int) -> Shape:
        """The same network over another tokenizer's vocabulary."""
        return replace(self, vocab=vocab)

    @property
    def head_dim(self) -> int:
        return self.head_width or self.hidden // self.heads

    @property
    def block_linears(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of one block's linear layers: q, k, v, o, gate, up, down."""
        hidden, ffn, kv = self.hidden, self.ffn, self.kv_heads * self.head_dim
        mixed, narrow, wide = self.heads * self.head_dim, (kv, hidden), (ffn, hidden)
        return (mixed, hidden), narrow, narrow, (hidden, mixed), wide, wide, (hidden, ffn)

    @property
    def linear_parameters(self) -> int:
        """Weights of the blocks' linear layers: the ones that become ternary."""
        return self.layers * sum(rows * columns for rows, columns in self.block_linears)

    @property
    def vocabulary_parameters(self) -> int:
        """Weights of the embedding and, unless it is tied, of the head."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def norm_parameters(self) -> int:
        return (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.vocabulary_parameters + self.norm_parameters

    def serving_bytes_full(self) -> int:
        """Bytes of all weights in bf16."""
        return 2 * self.parameters

    def serving_bytes_ternary(self) -> int:
        """Bytes with 2-bit codes, one float32 scale a layer, and an INT8 embedding and head.

        A row of codes is filled up to a whole byte; the INT8 matrices have a float32 scale a
        row; norms stay bf16.
        """
        codes = self.layers * sum(n * math.ceil(k / 4) for n, k in self.block_linears)
        scales = 4 * self.layers * len(self.block_linears)
        vocabulary = self.vocabulary_parameters + 4 * self.vocabulary_parameters // self.hidden
        return codes + scales + vocabulary + 2 * self.norm_parameters

    def serving_bytes_int8(self) -> int:
        """Bytes with every matrix in INT8 and a float32 scale a row; norms stay bf16."""
        matrices = self.linear_parameters + self.vocabulary_parameters
        rows = self.layers * sum(n for n, _ in self.block_linears)
        rows += self.vocabulary_parameters // self.hidden
        return matrices + 4 * rows + 2 * self.norm_parameters

    def serving_bytes_int4(self) -> int:
        """Bytes with INT4 codes and a float16 scale for each 32 inputs, and an INT8 embedding and
        head; norms stay bf16."""
        groups = self.layers * sum(n * math.ceil(k / 32) for n, k in self.block_linears)
        vocabulary = self.vocabulary_parameters + 4 * self.vocabulary_parameters // self.hidden
        return 18 * groups + vocabulary + 2 * self.norm_parameters

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes that one position of one sequence adds to the KV cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value

    def training_bytes(
        self,
        batch: int,
        sequence: int,
        *,
        bytes_per_value: int = 4,
        ternary: bool = True,
        checkpointing: bool = False,
    ) -> int:
        """An estimate of the peak of one training step.

        16 bytes a parameter (float32 weight, gradient, two Adam moments)
        + for the ternary arm a quantised copy of the linear weights in the computing precision
        + per token and block what the backward pass keeps: 8 hidden + 2 KV + 4 FFN values, and
          a hidden more in the ternary arm (q, k, v share one quantised input, and gate, up)
        + per token the logits, their log-probabilities and the gradient: 3 x 4 bytes a row of
          the vocabulary.
        With activation checkpointing a block keeps its float32 input alone, and one block at a
        time all of it.

        The counts are those that PyTorch's saved tensors show for Llama with fused attention.

        batch: sequences of one micro-batch. sequence: tokens. bytes_per_value: 4 for float32
        computing, 2 for bf16.
        """
        tokens = batch * sequence
        kept = 8 * self.hidden + 2 * self.kv_heads * self.head_dim + 4 * self.ffn
        states = ADAM_BYTES * self.parameters
        if ternary:
            states += bytes_per_value * self.linear_parameters
            kept += self.hidden
        blocks = tokens * self.layers * kept * bytes_per_value
        if checkpointing:
            blocks = tokens * (4 * self.layers * self.hidden + kept * bytes_per_value)
        return states + blocks + tokens * self.vocab * 12

    def config_fields(self) -> dict[str, object]:
        """The shape in the words of ``transformers.LlamaConfig``."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
        }

    def describe(self) -> str:
        fields = asdict(self)
        return f"{self.parameters / 1e6:,.1f}M parameters: " + ", ".join(
            f"{name} {fields[name]}" for name in ("hidden", "ffn", "layers", "heads", "vocab")
        )


PRESETS: dict[str, Shape] = {
    # name: Shape(hidden, ffn, layers, heads, kv_heads, vocab, context, rope_theta, tied)
    "tiny-1m": Shape(128, 352, 3, 4, 4, 4096, 1024, tied=True),
    "tiny-2m": Shape(192, 512, 3, 6, 6, 4096, 1024, tied=True),
    "tiny-5m": Shape(256, 704, 5, 8, 8, 4096, 1024, tied=True),
    "small-8m": Shape(320, 864, 6, 5, 5, 4096, 1024, tied=True),
    "small-25m": Shape(512, 1376, 7, 8, 8, 4096, 2048, tied=True),
    "medium-100m": Shape(768, 2048, 12, 12, 12, 32_000, 2048, tied=True),
    "medium-350m": Shape(1024, 2752, 24, 16, 16, 32_000, 2048, tied=True),
    "bitnet-700m": Shape(1536, 4096, 24, 24, 24, 32_002, 2048),
    "bitnet-1.3b": Shape(2048, 5460, 24, 32, 32, 32_002, 2048),
    "bitnet-2b4t": Shape(2560, 6912, 30, 20, 5, 128_256, 4096, 500_000.0, tied=True),
    "bitnet-3b": Shape(3200, 8640, 26, 32, 32, 32_002, 2048),
    "llama-3.2-3b": Shape(3072, 8192, 28, 24, 8, 128_256, 131_072, 500_000.0, tied=True),
    "bitnet-3.9b": Shape(3200, 12_800, 26, 32, 32, 32_002, 2048),
    "llama-30b": Shape(6656, 17_920, 60, 52, 52, 32_000, 2048),
    "llama-3-70b": Shape(8192, 28_672, 80, 64, 8, 128_256, 8192, 500_000.0),
}
