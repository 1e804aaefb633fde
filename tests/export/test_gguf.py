"""GGUF files: read back by transformers and by llama.cpp, block by block and as a whole."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from ternary_kernels.quantizers import quantize_int4
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from workbench.check.ternary import check_ternary
from workbench.errors import ConfigError
from workbench.export.blocks import TERNARY_TYPES, q4_0, q8_0, ternary_blocks
from workbench.export.gguf_file import Written, write_gguf
from workbench.export.parts import dense, matrices, vectors
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.packed import load_packed, save_packed
from workbench.ternary.packed_layers import Int4Linear, PackedTernaryLinear

LLAMA_CPP_TYPES = [name for name, kind in TERNARY_TYPES.items() if not kind.one_scale]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TEXT = "It's 2026: 12345 tokens — naïve café,\n\n  x = f(a_b) + 3.5e-4;\tEnd of the story  "
TOKENS = [0, 7, 300, 41, 5, 260, 99, 12]


def written(folder: Path, kind: str = "tq2_0", tokenizer=None) -> tuple[Path, Written]:
    path = folder / f"{kind}.gguf"
    return path, write_gguf(load_packed(folder), tokenizer, path, kind, name="small")


@pytest.mark.parametrize("kind", LLAMA_CPP_TYPES)
def test_blocks_hold_every_code_and_the_scale_as_float16(kind: str) -> None:
    block = TERNARY_TYPES[kind]
    layer = PackedTernaryLinear.from_values(
        torch.randint(-1, 2, (6, 512), dtype=torch.int8), torch.rand(6) * 0.1 + 1e-3
    )
    layer.codes[2] = 0b01010101  # a row of zeros
    rows, error = ternary_blocks(block, layer.codes, layer.scale, 512, "x")
    assert rows.shape == (6, 512 / 8 * block.bits) and 0 < error < 2**-11
    rounded = layer.scale.half().float()[:, None] * layer.values()
    np.testing.assert_array_equal(decoded(rows, block.name), rounded.numpy())


def decoded(rows: np.ndarray, name: str) -> np.ndarray:
    if name != "Q2_0":  # which this package of gguf does not know
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    blocks = rows.reshape(len(rows), -1, 18)
    d = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    codes = blocks[..., 2 + np.arange(64) // 4] >> (2 * (np.arange(64) % 4)) & 3
    return ((codes.astype(np.float32) - 1) * d).reshape(len(rows), -1)


def test_group_scales_go_where_no_block_spans_two() -> None:
    scale = torch.rand(4, 3) + 0.01
    assert {n for n, t in TERNARY_TYPES.items() if t.holds(320, scale)} == {"q2_0", "q4_0"}
    layer = PackedTernaryLinear.from_values(torch.ones(4, 320, dtype=torch.int8), scale)
    rows, _ = ternary_blocks(TERNARY_TYPES["q4_0"], layer.codes, scale, 320, "x")
    np.testing.assert_array_equal(decoded(rows, "Q4_0"), layer.dequantize().half().float())


def test_int8_rows_keep_their_values() -> None:
    values = np.random.default_rng(0).integers(-127, 128, (5, 96)).astype(np.int8)
    scale = np.float32([0.5, 0.25, 1, 2, 0.125])
    np.testing.assert_array_equal(decoded(q8_0(values, scale), "Q8_0"), values * scale[:, None])


def test_int4_is_q4_0_to_the_bit() -> None:
    layer = Int4Linear.from_values(*quantize_int4(torch.randn(6, 96)))
    rows = q4_0(layer.values().numpy(), layer.scale.numpy())
    np.testing.assert_array_equal(decoded(rows, "Q4_0"), layer.dequantize())


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_same_model(packed, tokenizer, family: str) -> None:
    # its reader of Qwen 3 takes every head to be 128 wide
    wide = {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = packed(family, **(wide if family == "qwen3" else {}))
    path, done = written(folder, "tq1_0", tokenizer)
    ours = load_packed(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name)
    found = dict(theirs.named_parameters())
    for name, module in matrices(ours).items():
        torch.testing.assert_close(found[f"{name}.weight"], dense(module), rtol=1e-3, atol=1e-6)
    for name, value in vectors(ours).items():
        torch.testing.assert_close(found[name], value)
    # of 7 x 2 layers one is INT8, one precise, and the two with 320 inputs do not fit
    assert done.types == {"TQ1_0": 10, "Q4_0": 2, "Q8_0": 3, "BF16": 1}
    assert "2 ternary matrices are Q4_0" in str(done) and "--type q2_0" in str(done)
    same = AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    assert same(TEXT, add_special_tokens=False).input_ids == tokenizer(TEXT).input_ids


class Peer:
    """The file in llama.cpp."""

    def __init__(self, path: Path) -> None:
        llama_cpp = pytest.importorskip("llama_cpp", reason="the bench extra is not installed")
        self._model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True)

    def logits(self, tokens: list[int]) -> np.ndarray:
        self._model.eval(tokens)
        return np.array(self._model.scores[: len(tokens)])

    def tokens(self, text: str) -> list[int]:
        return self._model.tokenize(text.encode(), add_bos=True, special=False)


@torch.no_grad()
def ours(folder: Path) -> np.ndarray:
    return load_packed(folder)(torch.tensor([TOKENS])).logits[0].numpy()


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("family", "kind", "granularity"),
    [("llama", kind, "tensor") for kind in LLAMA_CPP_TYPES]
    + [(family, "tq2_0", "row") for family in ("mistral", "qwen2", "qwen3")]
    + [("llama", "q2_0", "group128")],
)
def test_llama_cpp_computes_nearly_the_same(packed, tokenizer, family, kind, granularity) -> None:
    folder = packed(family, granularity)
    path, _ = written(folder, kind, tokenizer)
    peer = Peer(path)
    # activations are rounded to INT8 by block there and by token here
    assert error(peer.logits(TOKENS), ours(folder)) < 0.03
    assert peer.tokens(TEXT) == [tokenizer.bos_token_id, *tokenizer(TEXT).input_ids]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_llama_cpp_turns_positions_the_same_way(packed, tokenizer, rope: dict) -> None:
    folder = packed(rope_parameters=rope, tie_word_embeddings=True)
    path, done = written(folder, "q4_0", tokenizer)
    assert done.types["Q8_0"] == 2  # the head is the embedding
    assert error(Peer(path).logits(TOKENS), ours(folder)) < 0.03


def test_llama_cpp_adds_every_bias(packed, tokenizer) -> None:
    folder = packed(attention_bias=True, mlp_bias=True)
    path, _ = written(folder, "q4_0", tokenizer)
    assert error(Peer(path).logits(TOKENS), ours(folder)) < 0.03


def test_a_sliding_window_ends_the_context(packed, tokenizer) -> None:
    path, _ = written(packed("mistral", sliding_window=16), "q4_0", tokenizer)
    assert gguf.GGUFReader(path).fields["llama.context_length"].contents() == 16


def test_without_a_tokenizer_token_ids_still_work(packed) -> None:
    path, _ = written(packed())
    assert error(Peer(path).logits(TOKENS), ours(path.parent)) < 0.03


def test_what_is_said_of_the_types_fits_the_widths(packed) -> None:
    _, done = written(packed(hidden_size=288, intermediate_size=288))
    assert done.types["Q4_0"] == 10 and "--type q2_0" not in str(done)


def test_activations_that_llama_cpp_rounds_and_the_model_does_not(tmp_path: Path) -> None:
    model = small_llama()
    report = to_ternary(model, Policy(), ThresholdVersion(), activations="none")
    save_packed(model, tmp_path / "x", report.precisions, ThresholdVersion())
    _, done = written(tmp_path / "x")
    assert str(done).count("which this model leaves as they are") == 1


def test_every_token_that_ends_a_text_is_written_or_refused(packed, tokenizer) -> None:
    path, _ = written(packed(eos_token_id=[0, 5, 7]), tokenizer=tokenizer)
    fields = gguf.GGUFReader(path).fields
    ends = [fields[f"tokenizer.ggml.{kind}_token_id"].contents() for kind in ("eos", "eot", "eom")]
    assert ends == [0, 5, 7]
    model = load_packed(packed("qwen2", eos_token_id=[0, 5, 7, 9]))
    with pytest.raises(ConfigError, match=r"4 tokens end a text: \[0, 5, 7, 9\]"):
        write_gguf(model, tokenizer, path.parent / "b.gguf", name="small")


def small_llama(**fields) -> PreTrainedModel:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, vocab_size=32, **fields)
    return AutoModelForCausalLM.from_config(config)


def test_full_precision_becomes_bf16(tmp_path: Path) -> None:
    model = small_llama()
    done = write_gguf(model, None, tmp_path / "a.gguf", name="small")
    assert done.types == {"BF16": 9} and not done.instead
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    got = gguf.quants.dequantize(found["blk.0.ffn_up.weight"].data, gguf.GGMLQuantizationType.BF16)
    up = model.model.layers[0].mlp.up_proj.weight.detach()
    np.testing.assert_array_equal(got, up.bfloat16().float().numpy())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"hidden_act": "relu2"}, "activation 'relu2'"),  # which our own engine has
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
            "RoPE.*yarn",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, fields, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        write_gguf(small_llama(**fields), None, tmp_path / "a.gguf", name="small")
    assert not list(tmp_path.iterdir())


def test_biases_that_llama_cpp_does_not_load_are_refused(packed) -> None:
    with pytest.raises(ConfigError, match="biases in a model of type 'qwen3'"):
        written(packed("qwen3", attention_bias=True))


def test_an_int8_row_of_zeros_is_written(packed) -> None:
    folder = packed()
    model = load_packed(folder)
    model.model.embed_tokens.int8[7] = 0
    model.model.embed_tokens.scale[7] = 1e-14
    done = write_gguf(model, None, folder / "a.gguf", name="small")
    assert done.scale_error < 2**-11
    found = {t.name: t for t in gguf.GGUFReader(folder / "a.gguf").tensors}
    assert not decoded(found["token_embd.weight"].data, "Q8_0")[7].any()


def test_a_scale_that_float16_loses_is_refused(tmp_path: Path) -> None:
    layer = PackedTernaryLinear.from_values(
        torch.ones(4, 32, dtype=torch.int8), torch.tensor([1e-8])
    )
    with pytest.raises(ConfigError, match=r"o_proj has the scale 1e-08.*100%"):
        ternary_blocks(TERNARY_TYPES["q4_0"], layer.codes, layer.scale, 32, "o_proj")


def test_bitnet_cpps_type_is_read_back_bit_for_bit(packed, tokenizer) -> None:
    """I2_S as its layout is documented, written out here once more: of 128 inputs the byte k has
    those at k, k + 32, k + 64 and k + 96, the first highest; the scale is float32, behind all."""
    folder = packed()
    path, done = written(folder, "i2_s", tokenizer)
    # two layers have 320 inputs, which are no whole number of 128
    assert done.types == {"I2_S": 10, "Q4_0": 2, "Q8_0": 3, "BF16": 1}
    assert "one scale a matrix" in str(done) and "bitnet.cpp alone" in str(done)
    model = load_packed(folder)
    data = path.read_bytes()
    for name in ("o_proj", "q_proj"):  # the second has its rows in pairs
        layer = model.get_submodule(f"model.layers.1.self_attn.{name}")
        codes = (layer.values() + 1).numpy().astype(np.uint8)
        if name == "q_proj":
            codes = codes.reshape(8, 2, 16, 256).transpose(0, 2, 1, 3).reshape(256, 256)
        rows = bytearray()
        for row in codes:
            for begin in (0, 128):
                for k in range(begin, begin + 32):
                    q0, q1, q2, q3 = (int(row[k + 32 * part]) for part in range(4))
                    rows.append(q0 << 6 | q1 << 4 | q2 << 2 | q3)
        assert bytes(rows) + layer.scale.numpy().tobytes() + bytes(28) in data
    check = check_ternary(path)
    assert check.ok and len(check.ternary) == 12
    found = {m.name: m for m in check.ternary}["blk.1.attn_output.weight"]
    layer = model.model.layers[1].self_attn.o_proj
    assert found.scale_min == found.scale_max == float(layer.scale)
    shares = [float((layer.values() == value).float().mean()) for value in (-1, 0, 1)]
    assert found.shares == pytest.approx(shares)


def test_a_damaged_matrix_of_bitnet_cpp_is_told(packed) -> None:
    path, _ = written(packed(), "i2_s")
    layer = load_packed(path.parent).model.layers[1].self_attn.o_proj
    scale = layer.scale.numpy().tobytes() + bytes(28)
    data = bytearray(path.read_bytes())
    at = data.find(scale)
    data[at - 1] = 0b11
    path.write_bytes(data)
    assert "(I2_S) holds a code that is not -1, 0 or +1" in check_ternary(path).problems[0]
    path.write_bytes(data[: at - 100])
    assert "cut off or damaged" in check_ternary(path).problems[0]


def test_rows_of_scales_do_not_go_into_one(packed) -> None:
    path, done = written(packed("llama", "row"), "i2_s")
    assert "I2_S" not in done.types and done.instead["Q4_0"] == 12
    said = str(done)
    assert "no ternary matrix could be I2_S" in said and "file is llama.cpp's" in said
    assert "bitnet.cpp alone" not in said
    fields = gguf.GGUFReader(path).fields
    assert "general.file_type" not in fields
