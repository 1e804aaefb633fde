"""The native model equals the PyTorch one, and that one equals transformers."""

from __future__ import annotations

import numpy as np
import pytest
import ternary_kernels as tk
import torch
from ternary_kernels.llama import LINEARS, LlamaConfig, LlamaNative, LlamaReference, create
from ternary_kernels.mixed import int4_of

MAKE = {
    "ternary": tk.PackedTernary.from_float,
    "row": lambda w: tk.PackedTernary.from_float(w, "row"),
    "group128": lambda w: tk.PackedTernary.from_float(w, "group128"),
    "base3": tk.PackedTernary5.from_float,
    "triples": tk.PackedTernary3.from_float,
    "int8": tk.PackedInt8.from_float,
    "bf16": tk.PackedHalf.from_float,
    "fp16": lambda w: tk.PackedHalf.from_float(w, torch.float16),
    "int4": tk.PackedInt4.from_float,
    "mixed": lambda w: tk.PackedMixed.from_float(w, torch.randperm(w.shape[0])[: w.shape[0] // 3]),
    "mixed, rotated": lambda w: tk.PackedMixed.from_float(w, torch.arange(1, w.shape[0], 3), 512),
    "int4, rotated": lambda w: int4_of(w, rotation=512),
}
"""What a matrix of each kind is made by."""
TABLES = ("mixed", "mixed, rotated", "int4, rotated")
"""Kinds of an embedding or a head alone."""
LINEAR_KINDS = tuple(kind for kind in MAKE if kind not in TABLES)
needs_native = pytest.mark.skipif(not tk.available_isas(), reason="no native library")


def random_model(
    kinds, *, bias=False, qk_norm=False, sub_norm=False, head=None, table=None, **shape
):
    """head: kind of a head of its own. table: kind of the embedding."""
    sizes = dict(hidden_size=64, intermediate_size=100, num_layers=2, num_heads=4)
    sizes |= dict(num_kv_heads=2, head_dim=16, vocab_size=101) | shape
    D = sizes["head_dim"]
    inv_freq = tuple((10000.0 ** (-np.arange(0, D, 2) / D)).tolist())
    config = LlamaConfig(**sizes, inv_freq=inv_freq)
    g = torch.Generator().manual_seed(0)
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)

    def linear(N, K, j):
        return MAKE[kinds[j % len(kinds)]](torch.randn(N, K, generator=g) * K**-0.5)

    def norm(n):
        return 1 + 0.1 * torch.randn(n, generator=g)

    table = table or ("bf16" if kinds[0] in ("bf16", "fp16") else "int8")
    rows = torch.randn(config.vocab_size, config.hidden_size, generator=g)
    weights = {"embed": MAKE[table](rows), "norm": norm(config.hidden_size)}
    if head:
        rows = torch.randn(config.vocab_size, config.hidden_size, generator=g)
        weights["head"] = MAKE[head](rows * config.hidden_size**-0.5)
    for i in range(config.num_layers):
        layer = f"layers.{i}."
        for j, name in enumerate(LINEARS):
            N, K = config.linear_shape(name)
            weights[layer + name] = linear(N, K, i + j)
            if bias:
                weights[f"{layer}{name}.bias"] = torch.randn(N, generator=g) * 0.1
        weights[layer + "attn_norm"] = norm(config.hidden_size)
        weights[layer + "ffn_norm"] = norm(config.hidden_size)
        if qk_norm:
            weights |= {layer + "q_norm": norm(D), layer + "k_norm": norm(D)}
        if sub_norm:
            weights[layer + "attn_sub_norm"] = norm(config.num_heads * D)
            weights[layer + "ffn_sub_norm"] = norm(config.intermediate_size)
    return config, weights


# Prefill in two pieces beside another slot's, then decoding of several slots, then a rewind.
def steps(vocab):
    t = np.random.default_rng(0).integers(0, vocab, 64)
    return [
        (t[:20], [1] * 20, range(20), [j % 3 == 0 for j in range(20)]),
        (t[20:30], [1] + [0] * 8 + [2], [20, *range(8), 0], True),
        (t[30:33], [0, 1, 2], [8, 21, 1], True),
        (t[33:34], [1], [10], True),
    ]


def relative_error(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


CASES = {
    "bf16": dict(kinds="bf16"),
    "qwen3-like fp16": dict(kinds="fp16", qk_norm=True, head="fp16"),
    "qwen2-like mixed": dict(kinds=LINEAR_KINDS, bias=True),
    "bitnet": dict(kinds="ternary", sub_norm=True, activation="relu2"),
    "mistral-like window": dict(kinds="row", sliding_window=7),
    "int8, one KV head, odd head": dict(kinds="int8", num_heads=6, num_kv_heads=1, head_dim=20),
    "int4": dict(kinds="int4"),
    "triples": dict(kinds="triples", num_layers=3, intermediate_size=300),
    "int4 table": dict(kinds="row", table="int4", hidden_size=52),
    "mixed table": dict(kinds="row", table="mixed", vocab_size=16411),
    "rotated table": dict(kinds="row", table="int4, rotated", head="mixed, rotated"),
    "mixed tables, two": dict(kinds="base3", table="mixed", head="mixed", hidden_size=36),
    "many heads a KV head": dict(kinds="bf16", num_heads=28, head_dim=32, hidden_size=48),
}


@needs_native
@pytest.mark.parametrize("isa", tk.available_isas())
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
def test_native_equals_reference(case, isa, kv_dtype):
    config, weights = random_model(**CASES[case])
    best = tk.backend().isa
    tk.force_isa(isa)
    with LlamaNative(config, weights, 3, 40, kv_dtype) as core:
        expected = LlamaReference(config, weights, 3, 40, kv_dtype)
        # Where sums round differently, a cached or quantised value may fall to its neighbour.
        exact = isinstance(CASES[case]["kinds"], str) and CASES[case]["kinds"] == "bf16"
        exact &= not tk.backend().tile_rows  # tiles take the activations in bf16
        bound = 1e-3 if exact or "fp16" in case else 3e-2
        for tokens, slots, positions, want in steps(config.vocab_size):
            rows = (tokens, slots, list(positions), want)
            assert relative_error(core.forward(*rows), expected.forward(*rows)) < bound
    tk.force_isa(best)


@needs_native
@pytest.mark.parametrize("isa", tk.available_isas())
def test_triples_say_where_they_are_slow(isa):
    best = tk.backend().isa
    tk.force_isa(isa)
    with LlamaNative(*random_model(("ternary", "triples")), 1, 8) as core:
        slow = not tk.backend().vectors.startswith("avx512")
        assert any("triples are unpacked for every product" in note for note in core.notes) == slow
        assert core.backend.endswith(", triples")
    tk.force_isa(best)


@needs_native
def test_a_long_prompt_in_one_call_equals_token_by_token():
    config, weights = random_model("row")
    tokens = np.random.default_rng(0).integers(0, 101, 600)
    with LlamaNative(config, weights, 2, 600, "float32") as core:
        whole = core.forward(tokens, np.zeros(600), np.arange(600), True)
        single = [core.forward(tokens[j : j + 1], [1], [j], True) for j in range(600)]
    np.testing.assert_array_equal(np.concatenate(single), whole)


@needs_native
@pytest.mark.parametrize("isa", tk.available_isas())
@pytest.mark.parametrize("case", CASES)
def test_guessed_rows_are_to_the_bit_those_of_one_token_at_a_time(case, isa):
    """Whatever tile of rows and queries holds them, beside the rows of another slot."""
    config, weights = random_model(**CASES[case])
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 40)
    best = tk.backend().isa
    tk.force_isa(isa)
    with LlamaNative(config, weights, 3, 40, "float16") as core:
        assert core.rows_apart
        for slot in range(3):
            core.forward(tokens[:9], [slot] * 9, range(9), False)
        alone = np.concatenate(
            [core.forward(tokens[j : j + 1], [2], [j], True) for j in range(9, 40)]
        )
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 21, 31):
            own, places = tokens[9 : 9 + rows], range(9, 9 + rows)
            got = core.forward_apart([*own[:2], *own], [1] * len(own[:2]) + [0] * rows,
                                     [*places[:2], *places])  # fmt: skip
            np.testing.assert_array_equal(got[len(own[:2]) :], alone[:rows], f"{rows} rows")
            for slot in (0, 1):
                core.truncate(slot, 9)
    tk.force_isa(best)


def test_reference_equals_transformers():
    from transformers import LlamaConfig as HubConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    hub = HubConfig(
        hidden_size=64, intermediate_size=100, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=101, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(hub).to(torch.bfloat16).float().eval()
    half = tk.PackedHalf.from_float
    weights = {"embed": half(model.model.embed_tokens.weight), "norm": model.model.norm.weight}
    for i, block in enumerate(model.model.layers):
        parts = {name: getattr(block.self_attn, f"{name}_proj") for name in "qkvo"}
        parts |= {name: getattr(block.mlp, f"{name}_proj") for name in ("gate", "up", "down")}
        weights |= {f"layers.{i}.{name}": half(part.weight) for name, part in parts.items()}
        weights[f"layers.{i}.attn_norm"] = block.input_layernorm.weight
        weights[f"layers.{i}.ffn_norm"] = block.post_attention_layernorm.weight
    frequencies = tuple(model.model.rotary_emb.inv_freq.tolist())
    config = LlamaConfig(64, 100, 2, 4, 2, 16, 101, frequencies, rms_norm_eps=hub.rms_norm_eps)
    tokens = np.random.default_rng(0).integers(0, 101, 30)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    for cls in (LlamaReference, *((LlamaNative,) if tk.available_isas() else ())):
        core = cls(config, weights, 1, 30, "float32")
        logits = core.forward(tokens, np.zeros(30), np.arange(30), True)
        tiles = cls is LlamaNative and tk.backend().tile_rows
        assert relative_error(logits, expected) < (1e-2 if tiles else 1e-5)


def test_bad_rows_are_refused():
    core = create(*random_model("row"), slots=2, context=8)
    for rows, message in [
        (([101], [0], [0], True), r"tokens\[0\] = 101"),
        (([1], [2], [0], True), r"slots\[0\] = 2"),
        (([1], [0], [8], True), "larger context"),
        (([1, 1], [0, 0], [0, 0], True), "rising positions"),
        (([1], [0], [1], True), "Feed the positions between first"),
        (([1, 2], [0], [0], True), "three lists of the same length"),
    ]:
        with pytest.raises(ValueError, match=message):
            core.forward(*rows)
    assert core.forward([], [], [], True).shape == (0, 101)
    assert core.forward([1], [0], [0], False).shape == (0, 101)
    core.close()
    with pytest.raises(ValueError, match="closed"):
        core.forward([1], [0], [1], True)


def test_wrong_weights_are_refused():
    config, weights = random_model("row")
    with pytest.raises(ValueError, match=r"missing: \['layers.0.q'\]"):
        create(config, {k: v for k, v in weights.items() if k != "layers.0.q"}, 1, 8)
    with pytest.raises(ValueError, match=r"unknown: \['lm_head'\]"):
        create(config, weights | {"lm_head": weights["embed"]}, 1, 8)
    with pytest.raises(ValueError, match=r"layers.1.up is PackedTernary \(64, 64\)"):
        create(config, weights | {"layers.1.up": weights["layers.0.q"]}, 1, 8)


def test_activations_that_are_not_finite_name_their_place():
    config, weights = random_model("row")
    weights["layers.1.ffn_norm"] = torch.full((64,), float("nan"))
    core = create(config, weights, 1, 8)
    with pytest.raises(ValueError, match=r"layers.1.(gate|gate and up) hold NaN or Inf"):
        core.forward([1], [0], [0], True)
    assert core.filled[0] == 0


def test_bytes_are_counted():
    config, weights = random_model("row")
    core = create(config, weights, 2, 32)
    assert core.kv_bytes == 2 * 2 * 32 * 2 * 2 * 16 * 2
    assert core.weight_bytes == sum(w.nbytes for w in weights.values())
