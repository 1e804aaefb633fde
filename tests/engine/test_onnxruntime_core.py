"""ONNX Runtime as the engine's core: our answers, our notes, and a pilot's arms in it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ternary_kernels import PackedInt4
from ternary_kernels.core import NotFiniteError
from ternary_kernels.llama import LINEARS, LlamaConfig, LlamaReference
from transformers import AutoModelForCausalLM
from transformers import LlamaConfig as HuggingFaceConfig

from workbench.engine.cores import core_builder
from workbench.engine.engine import Engine
from workbench.engine.random_weights import random_weight, random_weights
from workbench.errors import ConfigError, StageError
from workbench.measure.probe import run_probe
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages import readiness
from workbench.stages.context import StageContext
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.nbits import int4_matrix

pytest.importorskip("onnx", reason="the onnx extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
KINDS = ("ternary", "int4", "int8", "half")


def core_of(*given, **options):
    from workbench.engine.onnxruntime_core import OnnxRuntimeCore

    return OnnxRuntimeCore(*given, **options)


def shape_of(draw: np.random.Generator) -> LlamaConfig:
    """Sizes that divide by nothing that a kernel would like."""
    head = 2 * int(draw.integers(3, 14))
    groups, share = int(draw.integers(1, 4)), int(draw.integers(1, 4))
    inv_freq = tuple((1e4 ** (-np.arange(0, head, 2) / head)).tolist())
    return LlamaConfig(
        hidden_size=int(draw.integers(17, 150)),
        intermediate_size=int(draw.integers(17, 200)),
        num_layers=2,
        num_heads=groups * share,
        num_kv_heads=groups,
        head_dim=head,
        vocab_size=int(draw.integers(20, 130)),
        inv_freq=inv_freq,
        sliding_window=int(draw.choice([0, 5])),
    )


def weights_of(
    config: LlamaConfig, draw: np.random.Generator, tied: bool, kinds: tuple[str, ...]
) -> dict:
    """Every linear layer in a precision of its own."""
    generator = torch.Generator().manual_seed(int(draw.integers(1000)))
    tables = str(draw.choice([kind for kind in kinds if kind in ("half", "int8")]))
    weights = random_weights(config, tables, tied=tied)
    for i in range(config.num_layers):
        for name in LINEARS:
            kind, shape = str(draw.choice(kinds)), config.linear_shape(name)
            weights[f"layers.{i}.{name}"] = random_weight(shape, kind, generator)
    return weights


@pytest.mark.parametrize(("kinds", "near"), [(("half",), 1e-4), (KINDS, 0.1)])
@pytest.mark.parametrize("seed", range(8))
def test_random_shapes_steps_and_slots_are_the_references(seed: int, kinds, near: float) -> None:
    """near: INT8 activations are rounded in blocks, the reference's for each token."""
    draw = np.random.default_rng(seed)
    config = shape_of(draw)
    weights = weights_of(config, draw, bool(seed % 2), kinds)
    slots, context = 4, 40
    ours = core_of(config, dict(weights), slots, context, bits=(2, 4, 8)[seed % 3])
    plain = LlamaReference(config, weights, slots, context)
    far: list[float] = []
    for _ in range(10):
        rows = []
        for slot in draw.permutation(slots)[: draw.integers(1, slots + 1)]:
            begin = int(plain.filled[slot])
            if begin and draw.random() < 0.3:  # back to somewhere, as after a rejected draft
                begin = int(draw.integers(0, begin))
                ours.truncate(slot, begin)
                plain.truncate(slot, begin)
            count = min(int(draw.choice([1, 1, 3, 7])), context - begin)
            rows += [(int(slot), begin + k) for k in range(count)]
        tokens = draw.integers(0, config.vocab_size, len(rows))
        want = draw.random(len(rows)) < 0.6
        step = tokens, [slot for slot, _ in rows], [at for _, at in rows], want
        got, wanted = ours.forward(*step), plain.forward(*step)
        assert got.shape == wanted.shape and got.dtype == np.float32
        far += list(np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1))
        assert np.array_equal(ours.filled, plain.filled)
    assert np.median(far) < near / 3 and max(far) < near
    ours.close()


def model_of(**fields) -> AutoModelForCausalLM:
    config = HuggingFaceConfig(
        **{
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 50,
            "num_attention_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": True,
        }
        | fields
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def test_it_says_what_computes_and_what_it_widens() -> None:
    model = model_of()
    with Engine.from_model(model, core="onnxruntime", threads=1) as engine:
        assert engine.backend == f"onnxruntime {onnxruntime.__version__} on CPU, 1 thread"
        assert "15 matrices in half precision are held as float32" in engine.notes[0]
        parameters = sum(p.numel() for p in model.parameters())
        assert engine.weight_bytes == pytest.approx(4 * parameters, rel=0.01)
    to_ternary(model)
    with Engine.from_model(model, core="onnxruntime-4bit", threads=1) as engine:
        assert "MatMulNBits of 4 bits" in engine.backend
        assert "1 matrix in half precision is held" in engine.notes[0]
        assert engine.kv_bytes == 2 * 2 * 64 * 64 * 2


def test_the_cache_of_a_step_that_failed_is_as_it_was() -> None:
    config = shape_of(np.random.default_rng(0))
    weights = random_weights(config, "ternary", tied=True)
    core = core_of(config, weights, 1, 16)
    core.forward([3, 1], [0, 0], [0, 1], False)
    before = {name: cache.copy() for name, cache in core._cache.items()}
    core._session = type("Broken", (), {"run": lambda self, names, given: [
        np.full((len(given["wanted"]), config.vocab_size), np.nan, np.float32), np.float32(1),
        *(np.zeros((1, 1, config.num_kv_heads, config.head_dim), np.float16) for _ in before),
    ]})()  # fmt: skip
    with pytest.raises(NotFiniteError):
        core.forward([4], [0], [2], True)
    assert core.filled.tolist() == [2]
    assert all(np.array_equal(core._cache[name], kept) for name, kept in before.items())


def test_what_the_graph_cannot_say_is_refused_where_the_core_is_named() -> None:
    model = model_of()
    to_ternary(model, threshold=ThresholdVersion(rotation=16))
    with pytest.raises(StageError, match=r"core onnxruntime does not run this model: .* rotated"):
        Engine.from_model(model, core="onnxruntime")
    with pytest.raises(ValueError, match="kv_dtype 'float32'; allowed in onnxruntime: 'float16'"):
        config = shape_of(np.random.default_rng(0))
        core_of(config, random_weights(config, "half", tied=True), 1, 8, "float32")


def test_a_missing_package_is_said_with_its_cure(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "workbench.engine.onnxruntime_core", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="core onnxruntime of ternary-workbench") as refused:
        core_builder("onnxruntime")
    assert "pip install -c constraints.txt -e '.[onnx]'" in str(refused.value)


def test_the_probe_of_a_pilot_runs_in_it(tmp_path: Path) -> None:
    noise = {"max_others_share": 1, "max_steal_share": 1, "max_pressure_share": 1}
    probe = {"prompt_tokens": 16, "output_tokens": 4, "repetitions": 2, "largest": "tiny-1m"}
    machine = {"probe": probe, "threads": 1, "quiet": noise, "core": "onnxruntime"}
    pilot = Pilot(name="probe", question="How fast?", readiness=machine)
    record = StageRecord("readiness", tmp_path)
    run_probe(StageContext(pilot, record, Progress(tmp_path / "events.jsonl", "readiness"), {}))
    how = record.metric("decode_speedup", arm="ternary", source="probe", shape="tiny-1m").how
    assert "full_precision: onnxruntime" in how and "ternary: onnxruntime" in how
    assert any("full_precision" in note and "float32" in note for note in record.notes)


def test_a_pilot_with_an_unknown_core_is_refused_before_it_starts() -> None:
    pilot = Pilot(name="x", question="?", readiness={"core": "onnxruntme"})
    problems = readiness.check(pilot)
    assert any("core onnxruntme: unknown; did you mean onnxruntime" in text for text in problems)


def test_int4_keeps_its_scales() -> None:
    """Negative scales and a last group that is not full: what least squares leaves."""
    draw = torch.Generator().manual_seed(1)
    matrix = PackedInt4.from_float(torch.randn(48, 50, generator=draw))
    made = int4_matrix(matrix)
    dense = made.values() * np.repeat(made.scales, made.block, axis=1)[:, :50]
    assert np.allclose(dense, matrix.dequantize().numpy(), atol=1e-6)
