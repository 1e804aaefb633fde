"""ONNX files: run by onnxruntime with the engine's own greedy tokens, read back bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ternary_kernels import PackedInt4

from workbench.check.ternary import check_ternary
from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.errors import ConfigError
from workbench.export import onnx_file
from workbench.export.onnx_file import WrittenOnnx, require_onnx, write_onnx
from workbench.export.parts import matrices
from workbench.ternary.nbits import int4_matrix, read_matrices, unpacked
from workbench.ternary.nbits import packed as packed_codes
from workbench.ternary.packed import load_packed
from workbench.ternary.packed_layers import Int8Embedding, Int8Linear, PackedTernaryLinear

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
ort = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
PROMPTS = ([0, 7, 300, 41, 5, 260, 99, 12], [3, 200, 17], [319])
TOKENS = 24


def written(folder: Path, **options) -> tuple[Path, WrittenOnnx]:
    path = folder / "model.onnx"
    return path, write_onnx(load_packed(folder), path, name="small", **options)


class Peer:
    """The file in onnxruntime, one sequence at a time, with its cache."""

    def __init__(self, path: Path, **session_options: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        for name, value in session_options.items():
            options.add_session_config_entry(name.replace("__", "."), value)
        self._session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
        self._pasts = [i for i in self._session.get_inputs() if i.name.startswith("past")]

    def greedy(self, prompt: list[int], tokens: int) -> tuple[list[int], np.ndarray]:
        """Tokens, and the logits of the first of them."""
        cache = {p.name: np.zeros((1, p.shape[1], 0, p.shape[3]), np.float16) for p in self._pasts}
        new, seen, found, first = list(prompt), 0, [], None
        for _ in range(tokens):
            given = {
                "input_ids": np.array([new], np.int64),
                "position_ids": np.arange(seen, seen + len(new), dtype=np.int64)[None],
                "attention_mask": np.ones((1, seen + len(new)), np.int64),
            }
            logits, *caches = self._session.run(None, given | cache)
            cache = dict(zip(cache, caches, strict=True))
            seen, first = seen + len(new), logits[0, -1] if first is None else first
            new = [int(logits[0, -1].argmax())]
            found += new
        return found, first


def ours(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    with Engine.load(folder, slots=1, threads=1) as engine:
        return engine.generate(GenerationRequest(tuple(prompt), tokens, ignore_eos=True)).tokens


@pytest.mark.parametrize(
    ("family", "granularity", "fields"),
    [
        ("llama", "tensor", {}),
        ("llama", "group128", {"tie_word_embeddings": True}),
        ("mistral", "row", {"sliding_window": 8}),
        ("qwen2", "row", {}),
        ("qwen3", "tensor", {}),
    ],
)
def test_the_greedy_tokens_are_the_engines(packed, family, granularity, fields) -> None:
    folder = packed(family, granularity, **fields)
    path, _ = written(folder)
    peer = Peer(path)
    for prompt in PROMPTS:
        assert peer.greedy(prompt, TOKENS)[0] == ours(folder, prompt, TOKENS)


def test_two_sequences_of_different_lengths_go_together(packed) -> None:
    """The shorter one is filled up on the left, which the mask says."""
    path, _ = written(packed())
    long, short = PROMPTS[0], PROMPTS[1]
    gap = len(long) - len(short)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {
        "input_ids": np.array([long, [0] * gap + short], np.int64),
        "position_ids": np.array([range(8), [0] * gap + list(range(len(short)))], np.int64),
        "attention_mask": np.array([[1] * 8, [0] * gap + [1] * len(short)], np.int64),
    }
    pasts = {i.name: i.shape for i in session.get_inputs() if i.name.startswith("past")}
    empty = {n: np.zeros((2, shape[1], 0, shape[3]), np.float16) for n, shape in pasts.items()}
    together = session.run(["logits"], given | empty)[0][:, -1]
    for row, prompt in zip(together, (long, short), strict=True):
        _, alone = Peer(path).greedy(prompt, 1)
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-5)


def test_a_model_in_full_precision(packed, tmp_path: Path) -> None:
    """Its matrices are bf16, as the engine's; only the order of additions differs."""
    folder = packed()
    model = load_packed(folder)
    precise = type(model)(model.config).eval()
    path = tmp_path / "full.onnx"
    done = write_onnx(precise, path, name="full")
    assert not done.bits and "tokenizer" in str(done)
    with Engine.from_model(precise, slots=1, threads=1) as engine:
        wanted = engine.generate(GenerationRequest(tuple(PROMPTS[0]), 8, ignore_eos=True)).tokens
    assert Peer(path).greedy(PROMPTS[0], 8)[0] == wanted


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
def test_every_code_and_scale_is_read_back(packed, granularity: str, bits: int) -> None:
    folder = packed("llama", granularity)
    path, done = written(folder, bits=bits)
    found = dict(read_matrices(onnx.load(path)))
    layers = {
        name: module
        for name, module in matrices(load_packed(folder)).items()
        if isinstance(module, PackedTernaryLinear | Int8Linear)
    }
    # of 7 x 2 layers one is in high precision, one INT8, and so is the head
    assert found.keys() == layers.keys() and len(found) == 14
    assert done.bits == ({2: 12, 8: 2} if bits == 2 else {4: 12, 8: 2} if bits == 4 else {8: 14})
    for name, module in layers.items():
        ternary = isinstance(module, PackedTernaryLinear)
        codes = module.values() if ternary else module.int8
        assert found[name].bits == (bits if ternary else 8)
        np.testing.assert_array_equal(found[name].values(), codes.numpy())
        np.testing.assert_array_equal(found[name].scale, module.scale.numpy())
        if ternary and bits == 2 and module.in_features % 128 == 0:
            # the same bytes as in the packed folder
            flat = found[name].codes.reshape(module.out_features, -1)
            np.testing.assert_array_equal(flat, module.codes.numpy())


def test_int4_keeps_its_values_and_scales() -> None:
    weight = PackedInt4.from_float(torch.randn(6, 70))
    matrix = int4_matrix(weight)
    np.testing.assert_array_equal(matrix.values(), weight.values().numpy())
    np.testing.assert_array_equal(matrix.scale, weight.scale.float().numpy())
    assert (matrix.bits, matrix.block) == (4, 32)


def test_an_int8_embedding_is_the_head_once(packed) -> None:
    folder = packed(tie_word_embeddings=True)
    path, _ = written(folder)
    model = onnx.load(path)
    assert "head.codes" not in {tensor.name for tensor in model.graph.initializer}
    embedding = load_packed(folder).get_input_embeddings()
    assert isinstance(embedding, Int8Embedding)
    head = dict(read_matrices(model))["lm_head"]
    np.testing.assert_array_equal(head.values(), embedding.int8.numpy())
    np.testing.assert_array_equal(head.scale, embedding.scale.numpy())


@pytest.mark.parametrize(("bits", "most"), [(8, 0.01), (4, 0.2)])
def test_the_rest_is_rounded_where_that_is_asked_for(packed, bits: int, most: float) -> None:
    folder = packed()
    path, done = written(folder, rest_bits=bits)
    assert done.rounded == 1 and "judge its quality again" in str(done)
    name = "model.layers.0.self_attn.v_proj"
    found = dict(read_matrices(onnx.load(path)))[name]
    rounded = found.values() * np.repeat(found.scales, found.block, axis=1)
    weight = load_packed(folder).get_submodule(name).weight.detach().bfloat16().float().numpy()
    worst = np.abs(rounded - weight).max() / np.abs(weight).max()
    assert 0 < worst < most
    assert len(Peer(path).greedy(PROMPTS[0], 2)[0]) == 2


def test_the_table_look_up_takes_what_divides_by_128(packed) -> None:
    """It rounds activations once more, so its logits are near and not the same."""
    folder = packed()
    path, done = written(folder)
    # k and v have 64 rows, gate and up 320, the others 256
    assert (done.ternary, done.for_lut) == (12, 5)
    plain, quick = (
        Peer(path, **options).greedy(PROMPTS[0], 1)[1]
        for options in ({}, {"mlas__use_lut_gemm": "1"})
    )
    assert np.linalg.norm(plain - quick) / np.linalg.norm(plain) < 0.1


def test_codes_of_every_width_survive_packing() -> None:
    for bits in (2, 4, 8):
        codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 21)).astype(np.uint8)
        np.testing.assert_array_equal(unpacked(packed_codes(codes, bits, 0), bits)[:, :21], codes)


def test_a_large_file_has_its_matrices_beside_it(packed, monkeypatch) -> None:
    folder = packed()
    whole, _ = written(folder)
    alone = Peer(whole).greedy(PROMPTS[0], 4)[0]
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 10_000)
    path, done = written(folder)
    assert done.beside == folder / "model.onnx.data" and "belongs beside it" in str(done)
    assert path.stat().st_size < done.beside.stat().st_size
    assert Peer(path).greedy(PROMPTS[0], 4)[0] == alone
    assert dict(read_matrices(onnx.load(path))).keys()


@pytest.mark.parametrize("granularity", ["tensor", "group128"])
def test_workbench_check_proves_a_file(packed, granularity: str) -> None:
    path, _ = written(packed("llama", granularity))
    check = check_ternary(path)
    # 12 ternary, q of the first layer and head INT8, its v in high precision
    assert check.ok and [len(check.ternary), len(check.matrices)] == [12, 15]
    layer = load_packed(path.parent).model.layers[1].self_attn.o_proj
    found = {m.name: m for m in check.ternary}["model.layers.1.self_attn.o_proj"]
    assert (found.scales, found.scale_max) == (layer.scale.numel(), float(layer.scale.max()))
    model = onnx.load(path)
    codes = next(t for t in model.graph.initializer if t.name == "layers.0.o.codes")
    codes.raw_data = b"\xff" + codes.raw_data[1:]
    onnx.save(model, path)
    assert "o_proj (2 bits) holds a code that is not" in check_ternary(path).problems[0]
    codes.raw_data = codes.raw_data[:100]
    onnx.save(model, path)
    assert "cannot be read" in check_ternary(path).problems[0]
    path.write_bytes(path.read_bytes()[:5000])
    assert "cut off or damaged" in check_ternary(path).problems[0]


def test_what_the_graph_cannot_say_is_refused(packed) -> None:
    model = load_packed(packed())
    model.config.hidden_act = "gelu"
    with pytest.raises(ConfigError, match=r"cannot be written as ONNX: activation 'gelu'"):
        write_onnx(model, Path("never.onnx"), name="small")


def test_without_the_onnx_package_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"package onnx[\s\S]*\[onnx\]"):
        require_onnx()
