"""The whole model on the device against the CPU's reference of it. See check_products.

Without a GPU no graph is captured, and the steps themselves are what runs here.
"""

import numpy as np
import pytest
import torch
from ternary_kernels import PackedHalf, PackedInt8, PackedTernary
from ternary_kernels.gpu import layout
from ternary_kernels.gpu.attention import StepRows, attend, rope_append
from ternary_kernels.gpu.gemm import plan
from ternary_kernels.gpu.graphs import Graphs, decode_bucket, prefill_bucket
from ternary_kernels.gpu.llama import LOGITS_ROWS, LlamaGpu, _tiles, random_llama
from ternary_kernels.gpu.pack import unpack_codes
from ternary_kernels.llama import LINEARS, LlamaConfig, LlamaReference

DEVICE = "cpu" if layout.INTERPRETED else "cuda"
VOCAB, HIDDEN, INTER = 37, 48, 52  # 52: up would begin inside a row group of gate
RNG = np.random.default_rng(5)
TOKENS = RNG.integers(0, VOCAB, 21)  # more than a tile of rows


def make_config(heads=2, kv=1, size=12, layers=1, **rest):
    frequencies = tuple((1e4 ** -(np.arange(size // 2) * 2 / size)).tolist())
    return LlamaConfig(HIDDEN, INTER, layers, heads, kv, size, VOCAB, frequencies, **rest)


def make_weights(config, kind, *, extras=()):
    """Random weights; kind(layer's name, matrix) packs one."""
    generator = torch.Generator().manual_seed(11)

    def draw(*shape, centre=0.0, spread=1.0):
        return centre + spread * torch.randn(shape, generator=generator)

    table = PackedInt8 if kind is packed_ternary else PackedHalf
    weights = {"norm": draw(HIDDEN, centre=1.0, spread=0.2)}
    for name in ("embed", "head"):
        weights[name] = table.from_float(draw(VOCAB, HIDDEN))
    inner = config.num_heads * config.head_dim
    norms = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN, "q_norm": config.head_dim}
    norms |= {"k_norm": config.head_dim, "attn_sub_norm": inner, "ffn_sub_norm": INTER}
    for i in range(config.num_layers):
        for name in LINEARS:
            N, K = config.linear_shape(name)
            weights[f"layers.{i}.{name}"] = kind(name, draw(N, K, spread=K**-0.5))
            if "bias" in extras and name in "qkv":
                weights[f"layers.{i}.{name}.bias"] = draw(N, spread=0.3)
        for name, length in norms.items():
            if name in ("attn_norm", "ffn_norm", *extras):
                weights[f"layers.{i}.{name}"] = draw(length, centre=1.0, spread=0.2)
    return weights


def packed_half(name, matrix):
    return PackedHalf.from_float(matrix)


def packed_ternary(name, matrix):
    return PackedTernary.from_float(matrix, "row" if name in "qo" else "tensor")


def packed_hybrid(name, matrix):
    kinds = {"k": PackedInt8, "up": PackedHalf, "down": PackedInt8}
    return kinds.get(name, PackedTernary).from_float(matrix)


def packed_groups(name, matrix):
    return PackedTernary.from_float(matrix, "group128" if name in "qkd" else "row")


WINDOW = make_config(2, 2, sliding_window=7)
QWEN = ("bias", "q_norm", "k_norm")
CASES = {
    "half": (make_config(layers=2), packed_half, (), 1e-5),
    "half, one KV head a head, window": (WINDOW, packed_half, (), 1e-5),
    "half, biases and head norms": (make_config(), packed_half, QWEN, 1e-5),
    "ternary": (make_config(), packed_ternary, ("bias",), 2e-2),
    "ternary, BitNet": (
        make_config(activation="relu2"), packed_ternary, ("attn_sub_norm", "ffn_sub_norm"), 2e-2
    ),
    "hybrid": (make_config(), packed_hybrid, (), 2e-2),
    "groups": (make_config(), packed_groups, (), 2e-2),
}  # fmt: skip


def both(name, slots=3, context=32, **options):
    config, kind, extras, _ = CASES[name]
    weights = make_weights(config, kind, extras=extras)
    options = {"device": DEVICE, "dtype": torch.float32, "capture": DEVICE == "cuda"} | options
    return (
        LlamaGpu(config, dict(weights), slots, context, "float32", **options),
        LlamaReference(config, dict(weights), slots, context, "float32"),
    )


def error(got, wanted):
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("name", CASES)
def test_prefill_decode_and_mixed_steps_give_the_references_logits(name):
    allowed = CASES[name][3]
    gpu, reference = both(name, capture=name == "ternary")  # filled up to buckets, once
    with gpu, reference:
        for core in (gpu, reference):
            core.forward(TOKENS[:3], [1] * 3, np.arange(3), False)
        steps = [
            (TOKENS[:18], [0] * 18, np.arange(18), np.arange(18) % 5 == 2),
            ([7], [0], [18], True),
            ([5, 9], [2, 0], [0, 19], True),  # decoding in two slots, one of them empty
            # two slots prefill while one decodes, rows mixed
            ([1, 2, 3, 4, 5], [1, 0, 2, 1, 2], [3, 20, 1, 4, 2], [False, True, True, True, True]),
        ]
        for step in steps:
            got, wanted = gpu.forward(*step), reference.forward(*step)
            assert got.shape == wanted.shape and error(got, wanted) < allowed, step
        assert gpu.filled.tolist() == reference.filled.tolist() == [21, 5, 3]


@pytest.mark.parametrize("name", ["hybrid", "half, biases and head norms", "ternary, BitNet"])
def test_a_whole_step_is_one_graph_under_torch_compile(name):
    """Every launch is an operator with a fake kernel, and the cache is said to be written to."""
    gpu, reference = both(name, capture=False)
    prompt = (TOKENS[:18], [0] * 18, np.arange(18), np.arange(18) == 17)
    with gpu, reference:
        gpu._body = torch.compile(gpu._body, fullgraph=True, backend="aot_eager")
        for step in (prompt, ([7], [0], [18], True)):
            assert error(gpu.forward(*step), reference.forward(*step)) < CASES[name][3], step


def test_stacked_layers_hold_the_same_codes():
    gpu, reference = both("ternary")
    for i, layer in enumerate(gpu._layers):
        ((stacked, bias),) = layer.gate_up.parts
        codes = [reference.weights[f"layers.{i}.{n}"].codes() for n in ("gate", "up")]
        assert torch.equal(unpack_codes(stacked).cpu(), torch.cat(codes)) and bias is None
        ((stacked, bias),) = layer.qkv.parts
        parts = [reference.weights[f"layers.{i}.{n}"] for n in "qkv"]
        assert torch.equal(unpack_codes(stacked).cpu(), torch.cat([p.codes() for p in parts]))
        dense = torch.cat([p.dequantize() for p in parts])
        assert torch.equal(stacked.dequantize() if DEVICE == "cpu" else dense, dense)
        assert len(bias) == len(dense)


def test_greedy_decoding_on_the_device_is_that_of_single_steps():
    gpu, _ = both("ternary")
    for slot in (0, 2):
        gpu.forward(TOKENS[slot : slot + 4], [slot] * 4, np.arange(4), False)
    tokens = gpu.decode_greedy([2, 0], [3, 4], 3)
    assert tokens.shape == (3, 2) and gpu.filled.tolist() == [7, 0, 7]
    for slot in (0, 2):
        gpu.reset(slot)
        gpu.forward(TOKENS[slot : slot + 4], [slot] * 4, np.arange(4), False)
    single = [3, 4]
    for row in tokens:
        single = gpu.forward(single, [2, 0], gpu.filled[[2, 0]], True).argmax(1)
        assert single.tolist() == row.tolist()
    with pytest.raises(ValueError, match="up to the context of 32"):
        gpu.decode_greedy([0], [1], 26)
    with pytest.raises(ValueError, match=r"slots\[0\] = 3; allowed: 0 to 2"):
        gpu.decode_greedy([3], [1], 1)


def test_long_calls_are_cut_and_long_caches_are_split(monkeypatch):
    monkeypatch.setattr("ternary_kernels.gpu.attention.SHORTEST_SPLIT", 8)
    gpu, reference = both("half", slots=1)
    gpu.prefill_rows = 8
    step = (TOKENS, [0] * 21, np.arange(21), True)
    assert error(gpu.forward(*step), reference.forward(*step)) < 1e-5
    for position in (21, 22):
        step = ([4], [0], [position], True)
        assert error(gpu.forward(*step), reference.forward(*step)) < 1e-5


def test_low_precision_stays_near():
    gpu, reference = both("ternary", dtype=torch.bfloat16)
    step = (TOKENS, [0] * 21, np.arange(21), True)
    assert error(gpu.forward(*step), reference.forward(*step)) < 5e-2


def test_bytes_caches_and_what_is_refused():
    gpu, reference = both("ternary")
    P = 16  # head dimension 12 filled up to a multiple of 8
    assert gpu.kv_bytes == 2 * 1 * 3 * 1 * 32 * P * 4
    assert gpu.weight_bytes >= sum(w.nbytes for w in reference.weights.values()) // 2
    other = LlamaGpu(
        gpu.config, make_weights(gpu.config, packed_ternary), 3, 32, "float32",
        device=DEVICE, dtype=torch.float32, cache_of=gpu,
    )  # fmt: skip
    assert other.kv_bytes == 0 and other._cache[0] is gpu._cache[0]
    with pytest.raises(ValueError, match="both the same slots, context and kv_dtype"):
        LlamaGpu(
            gpu.config, make_weights(gpu.config, packed_ternary), 2, 32, "float32",
            device=DEVICE, cache_of=gpu,
        )  # fmt: skip
    with pytest.raises(ValueError, match="allowed: at most 0"):
        gpu.forward([1], [0], [3], True)
    assert gpu.forward([], [], [], True).shape == (0, VOCAB)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("name", ["half", "ternary"])
def test_weights_that_are_not_finite_are_an_error_and_not_a_logit(name):
    gpu, _ = both(name)
    with torch.inference_mode():  # in which the weights came to the device
        gpu._layers[0].ffn_norm[3] = torch.nan
    with pytest.raises(ValueError, match="hold NaN or Inf"):
        gpu.forward([1], [0], [0], True)
    with pytest.raises(ValueError, match="hold NaN or Inf"):
        gpu.decode_greedy([0], [1], 2)
    assert gpu.filled.tolist() == [0, 0, 0]


@pytest.mark.parametrize("precision", ["ternary", "int8", "half"])
def test_random_models_are_made_where_they_run(precision):
    config = make_config()
    weights = random_llama(config, precision, tied=True, device=DEVICE, dtype=torch.float32)
    gpu = LlamaGpu(config, weights, 1, 8, device=DEVICE, dtype=torch.float32)
    logits = gpu.forward([1, 2], [0, 0], [0, 1], True)
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 10


def test_warming_touches_no_conversation():
    gpu, reference = both("half", slots=2, context=8, capture=True)
    for core in (gpu, reference):
        core.forward(TOKENS[:3], [1] * 3, np.arange(3), False)
    gpu.warm()
    step = ([4], [1], [3], True)
    assert error(gpu.forward(*step), reference.forward(*step)) < 1e-5
    assert gpu.filled.tolist() == [0, 4]


def test_warming_reaches_every_kind_of_head():
    """What a prefill step's head may take was compiled before: no request pays for it."""
    gpu, _ = both("half", slots=1, context=512)
    gpu._pads, warmed = True, set()
    gpu._run_decode = lambda *args: None
    gpu._run_prefill = lambda size, *args: torch.zeros((2, size, 1))
    gpu._logits = lambda last: warmed.add(len(last[0]))
    gpu.warm()

    def kinds(rows):
        device = torch.device("cpu")
        return {(M == 1, plan(M, 32002, 25, device, False)) for M in rows}

    assert kinds(warmed) == kinds(range(1, LOGITS_ROWS + 1))


class Recorded:
    """Stands for a CUDA graph: a replay runs the step again, on the same buffers."""

    def __init__(self, step):
        self.replay = step


def test_captured_steps_are_filled_replayed_and_counted(monkeypatch):
    monkeypatch.setattr(Graphs, "_try", lambda self, step: step())
    monkeypatch.setattr(Graphs, "_record", lambda self, step: (Recorded(step), step()))
    buffer, graphs = torch.zeros(1), Graphs(enabled=True)

    def step():
        return buffer.add_(1)

    for _ in range(2):  # the trial run and the capture change the buffer; filling undoes it
        assert graphs.run("key", step, lambda: buffer.fill_(10), times=3).item() == 13
    assert list(graphs._graphs) == ["key"] and not graphs.notes


def test_a_capture_without_memory_is_said_once_and_the_step_runs_uncaptured(monkeypatch):
    attempts = []

    def refuse(self, step):
        attempts.append(step)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(Graphs, "_try", lambda self, step: step())
    monkeypatch.setattr(Graphs, "_record", refuse)
    gpu, reference = both("half", slots=2)
    gpu.graphs.enabled = True
    for token, position in ((3, 0), (4, 1)):
        step = ([token], [0], [position], True)
        assert error(gpu.forward(*step), reference.forward(*step)) < 1e-5
    gpu.forward([1, 2], [0, 1], [2, 0], True)
    assert len(attempts) == 2 and len(gpu.notes) == 1
    assert "('decode', 1) could not be captured" in gpu.notes[0]
    assert "Tried to allocate 2 GiB. Lower slots or context" in gpu.notes[0]


def test_a_cache_without_memory_says_what_to_lower(monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    config = make_config()
    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(MemoryError, match=r"2 slots x 64 positions\); lower slots or context"):
        LlamaGpu(config, make_weights(config, packed_half), 2, 64, device=DEVICE)


def test_a_cache_of_more_than_2_to_the_31_elements():
    """Reserved and hardly touched: only the last slot is written and read."""
    slots = 2**31 // (32 * 4096) + 2
    cache = tuple(
        torch.empty((slots, 1, 4096, 32), dtype=torch.float16, device=DEVICE) for _ in range(2)
    )
    assert cache[0].numel() > 2**31
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn((2, 4 * 32), generator=generator).to(DEVICE)
    tables = torch.ones(4096, 16, device=DEVICE), torch.zeros(4096, 16, device=DEVICE)
    at = [torch.tensor(v, dtype=torch.int32, device=DEVICE) for v in ([0, 0], [slots - 1] * 2)]
    for position in (0, 1):
        rows = StepRows(*at, torch.tensor([-1, position], dtype=torch.int32, device=DEVICE))
        q = rope_append(qkv + position, rows, tables, cache, None, 1e-5)
    y = attend(q, rows, cache, 0).cpu()
    keys = torch.stack([qkv[1, 64:96], qkv[1, 64:96] + 1]).half().float().cpu()
    values = torch.stack([qkv[1, 96:], qkv[1, 96:] + 1]).half().float().cpu()
    scores = (qkv[1, :64].cpu() + 1).view(2, 32) @ keys.T * 32**-0.5
    torch.testing.assert_close(y[1].view(2, 32), scores.softmax(1) @ values, rtol=1e-2, atol=1e-2)
    assert not y[0].any()


def test_buckets_and_tiles():
    assert [decode_bucket(n, 12) for n in (1, 2, 3, 5, 8, 9, 12)] == [1, 2, 4, 8, 8, 12, 12]
    sizes = (1, 17, 65, 129, 512, 513, 2048)
    assert [prefill_bucket(n, 2048) for n in sizes] == [16, 32, 128, 192, 512, 768, 2048]
    slots = np.array([0] * 20 + [2] * 3 + [5], dtype=np.int32)
    assert _tiles(slots, 16).T.tolist() == [[0, 16], [16, 4], [20, 3], [23, 1]]
