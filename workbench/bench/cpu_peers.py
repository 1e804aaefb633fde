"""llama.cpp on the same shape, in files that this module writes itself.

The files hold random weights in llama.cpp's own types, block by block as its quantisers would
leave them; what a model says does not change how fast it says it. Norms are float32, the
embedding (tied to the head) is Q6_K beside the 2-bit types, as llama.cpp's own converter
chooses, and of the layers' type beside the others. A peer runs in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ternary_kernels.llama import LINEARS, LlamaConfig

from workbench.child import child, end_of_log
from workbench.errors import StageError

PEERS = ("TQ2_0", "TQ1_0", "Q4_0", "Q8_0", "F16")
_GGUF_NAMES = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
# Weights a block, and where its fp16 scale begins; the rest are codes.
_BLOCKS = {"TQ2_0": (256, 66, 64), "TQ1_0": (256, 54, 52), "Q4_0": (32, 18, 0), "Q8_0": (32, 34, 0)}
_BLOCKS["Q6_K"] = (256, 210, 208)


def missing_packages() -> list[str]:
    """Packages of the ``bench`` extra that are not installed."""
    from importlib.util import find_spec

    return [name for name in ("gguf", "llama_cpp") if find_spec(name) is None]


def write_file(path: Path, config: LlamaConfig, kind: str) -> None:
    """A GGUF file of this shape with random weights of one llama.cpp type."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(5e5)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)

    def matrix(name: str, N: int, K: int, kind: str) -> None:
        data = _random_matrix(rng, N, K, kind)
        raw = None if kind == "F16" else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", data, raw_dtype=raw)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(config.hidden_size, dtype=np.float32))

    table = "Q6_K" if kind in ("TQ2_0", "TQ1_0") else kind
    matrix("token_embd", config.vocab_size, config.hidden_size, table)
    norm("output_norm")
    for i in range(config.num_layers):
        for name in LINEARS:
            matrix(f"blk.{i}.{_GGUF_NAMES[name]}", *config.linear_shape(name), kind)
        norm(f"blk.{i}.attn_norm")
        norm(f"blk.{i}.ffn_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Peer:
    """A file in llama.cpp, in a process of its own that runs what it is asked, one run at a time.

    So its runs can take turns with ours, and a machine whose memory slows down slows down both.
    """

    def __init__(self, path: Path, threads: int, prompt: int, output: int) -> None:
        self._log = path.with_suffix(".log")
        arguments = map(str, (path, threads, prompt, output))
        self._child = child("workbench.bench.cpu_peers", *arguments, log=self._log, answers=True)

    def prefill(self) -> int:
        """Run the prompt from an empty cache, which it leaves filled; returns its tokens."""
        return self._ask("prefill")

    def decode(self) -> int:
        """Run one output after the prompt; returns its tokens."""
        return self._ask("decode")

    def _ask(self, what: str) -> int:
        try:
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise StageError(
                f"llama.cpp ended while it should {what}; the end of its log:\n"
                f"    {end_of_log(self._log)}",
                next_step="leave --peers out, or install the bench extra again",
            )
        return int(answer)

    def __enter__(self) -> Peer:
        self._process = self._child.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._child.__exit__(*raised)


def _random_matrix(rng: np.random.Generator, N: int, K: int, kind: str) -> np.ndarray:
    """A drawn stretch of rows, repeated: quick to make, every byte present."""
    rows = min(N, 64)
    if kind == "F16":
        drawn = (rng.standard_normal((rows, K)) * K**-0.5).astype(np.float16)
    else:
        weights, size, scale_at = _BLOCKS[kind]
        if K % weights:
            raise ValueError(f"{kind} needs rows that divide by {weights}, got K = {K}")
        codes = _CODES.get(kind, lambda rng, shape: rng.integers(0, 256, shape))
        blocks = codes(rng, (rows, K // weights, size)).astype(np.uint8)
        if kind == "Q6_K":  # sixteen INT8 scales before the block's own
            blocks[..., 192:208] = 1
        scale = np.float16(K**-0.5 / {"Q8_0": 74, "Q6_K": 18, "Q4_0": 4.6}.get(kind, 0.8))
        blocks[..., scale_at : scale_at + 2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
        drawn = blocks.reshape(rows, -1)
    return np.tile(drawn, (-(-N // rows), 1))[:N]


def _two_bit_codes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    digits = rng.integers(0, 3, (4, *shape))
    return sum(digit << (2 * i) for i, digit in enumerate(digits))


def _base_3_codes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.integers(0, 243, shape) * 256 + 242) // 243


_CODES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "TQ2_0": _two_bit_codes,
    "TQ1_0": _base_3_codes,
}


def _serve(path: str, threads: int, prompt: int, output: int) -> None:
    """Do what each line of standard input asks, ``prefill`` or ``decode``; answer its tokens."""
    import ctypes

    import llama_cpp as api

    silent = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    options = api.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = prompt + output + 8, prompt, prompt
    options.n_threads = options.n_threads_batch = threads
    context = api.llama_init_from_model(model, options)
    if not model or not context:
        raise RuntimeError(f"llama.cpp refuses {path}")
    memory = api.llama_get_memory(context)
    tokens = (api.llama_token * prompt)(*(np.arange(prompt) % 1000).tolist())

    def run(count: int) -> int:
        if api.llama_decode(context, api.llama_batch_get_one(tokens, count)):
            raise RuntimeError("llama_decode failed")
        api.llama_get_logits_ith(context, -1)
        return count

    def prefill() -> int:
        api.llama_memory_clear(memory, True)
        return run(prompt)

    def decode() -> int:
        api.llama_memory_seq_rm(memory, 0, prompt, -1)
        return sum(run(1) for _ in range(output))

    run(1)  # the first call of a context reserves its buffers
    for line in sys.stdin:
        print(prefill() if line.strip() == "prefill" else decode(), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], *map(int, sys.argv[2:]))
