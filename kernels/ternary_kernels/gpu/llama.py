"""A Llama-type model on a CUDA device: the twin of :mod:`ternary_kernels.llama`.

The interface, the checks and the weights' names are those of the CPU's model. What differs is
how a step runs: its rows lie in static buffers of a few sizes (*buckets*), every step is a
fixed sequence of launches over them, and that sequence is captured in a CUDA graph
(:mod:`.graphs`). Per layer, with INT8 or ternary weights:

1. residual sum + RMSNorm + INT8 rounding       one launch
2. q, k and v as one product                    (+1 where its K is split)
3. head norms, RoPE, keys and values to cache   one launch
4. attention over the cache                     (+1 where positions are split)
5. (norm +) INT8 rounding
6. o
7. residual sum + RMSNorm + INT8 rounding
8. gate and up as one product
9. act(gate) * up (+ norm) + INT8 rounding
10. down

A layer in half precision takes the same steps without the rounding, its products by cuBLAS: both
arms of a comparison run through this file. A layer whose parts differ in precision (a hybrid)
has its parts multiplied one by one and put side by side.

The residual stream is float32, products and what lies between them ``dtype`` (bf16), logits
float32. Within a step nothing waits for the device; the one wait is the copy of the logits, and
:meth:`LlamaGpu.decode_greedy`, which chooses tokens on the device, has one for all its steps.

Two kinds of steps: *decode*, every row a slot of its own, and *prefill*, runs of rows. Padding
rows have position -1 and touch nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import NotFiniteError
from ..llama import KV_DTYPES, LINEARS, LlamaConfig, LlamaModel
from ..weights import PackedTernary, PackedWeight
from .attention import StepRows, attend, padded, rope_append, tile_rows
from .graphs import Graphs, decode_bucket, prefill_bucket
from .int8 import embed, linear_int8_rows
from .linear import linear
from .matrices import HalfMatrix, place, random_matrix, stack, stackable
from .norm import add_half_rows, half_rows
from .quantize import add_quantize, quantize, quantize_gated

MOST_ROWS = 2048
"""Rows of one prefill step; a longer call is cut into several."""
WARMED_ROWS = (1, 16, 32, 64, 128, 512)
"""One of each kind of product that a head's rows can take; see :func:`.gemm.plan`."""
LOGITS_ROWS = 512
"""Rows whose logits are computed together after a prefill step: 262 MB for 128,256 words."""


@dataclass(frozen=True)
class Projection:
    """Linear layers over one input, side by side: y [M, sum N_i].

    parts: (matrix, bias or None), as few as their precisions allow.
    """

    parts: tuple[tuple[PackedWeight, Tensor | None], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, layers: list[tuple[PackedWeight, Tensor | None]], dtype: torch.dtype) -> Projection:
        """From placed matrices; neighbours of one kind become one matrix."""
        runs: list[list[tuple[PackedWeight, Tensor | None]]] = []
        for layer in layers:
            if runs and stackable(runs[-1][0][0], layer[0]):
                runs[-1].append(layer)
            else:
                runs.append([layer])
        parts = tuple((stack([w for w, _ in run]), _stacked_bias(run)) for run in runs)
        return cls(parts, dtype)

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes + (0 if b is None else b.nbytes) for w, b in self.parts)

    def __call__(
        self,
        x: Tensor,
        norm_weight: Tensor | None = None,
        eps: float = 0.0,
        *,
        add: Tensor | None = None,
        activation: str = "none",
        out: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(y in ``out`` or the own type, x + add in float32) for norm(act(x + add)).

        x: [M, K], or [M, 2K] of gate and up with an activation.
        """
        kinds = {matrix.kind for matrix, _ in self.parts}
        total, rows, half = x, None, None
        if kinds - {"half"}:
            if activation != "none":
                rows = quantize_gated(x, activation, norm_weight, eps)
            elif add is None:
                rows = quantize(x, norm_weight, eps)
            else:
                rows, total = add_quantize(x, add, norm_weight, eps)
        if "half" in kinds:
            if add is not None:
                half, total = add_half_rows(x, add, norm_weight, eps, self.dtype)
            elif activation == "none" and norm_weight is None and x.dtype == self.dtype:
                half = x
            else:
                half = half_rows(x, norm_weight, eps, activation, self.dtype)
        products = [_product(rows, half, *part, out or self.dtype) for part in self.parts]
        return products[0] if len(products) == 1 else torch.cat(products, 1), total


@dataclass(frozen=True)
class DecoderLayer:
    """One block. head_norms: of q and k (Qwen3); the sub-norms are BitNet's."""

    attn_norm: Tensor
    qkv: Projection
    head_norms: tuple[Tensor, Tensor] | None
    attn_sub_norm: Tensor | None
    o: Projection
    ffn_norm: Tensor
    gate_up: Projection
    ffn_sub_norm: Tensor | None
    down: Projection
    cache: tuple[Tensor, Tensor]


class LlamaGpu(LlamaModel):
    """The model on ``device``; see the module's text and :class:`ternary_kernels.llama.LlamaModel`.

    dtype: of activations and half-precision matrices. capture: False leaves steps uncaptured
    and as many rows as they have, not filled up to a bucket.
    cache_of: another model of the same shape whose KV cache this one uses too, instead of one
    of its own; only one of them may hold conversations at a time.
    Weights may lie on the CPU or be made on the device already. They are moved and stacked layer
    by layer and ``weights`` is emptied, so that no matrix is held twice.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: dict[str, PackedWeight | Tensor],
        slots: int,
        context: int,
        kv_dtype: str = "float16",
        *,
        device: torch.device | str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        capture: bool = True,
        cache_of: LlamaGpu | None = None,
    ) -> None:
        super().__init__(config, weights, slots, context, kv_dtype)
        self._widened = sum(w.kind == "int4" for w in weights.values() if hasattr(w, "kind"))
        weights.clear()
        self.device, self.dtype = torch.device(device), dtype
        self.graphs, self._pads = Graphs(capture and self.device.type == "cuda"), capture
        self.prefill_rows = MOST_ROWS
        self._cache, self._owns_cache = self._make_cache(cache_of), cache_of is None
        with torch.inference_mode():
            self._place()
            self._make_buffers()

    @property
    def backend(self) -> str:
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else "the CPU, interpreted"
        return f"ternary_kernels.gpu on {name}" + (", CUDA graphs" if self.graphs.enabled else "")

    @property
    def notes(self) -> list[str]:
        """What could not be captured, and why; what has no kernel."""
        if not self._widened:
            return self.graphs.notes
        return [
            *self.graphs.notes,
            f"{self._widened} INT4 layers have no GPU kernel yet and are held in half precision: "
            "their speed and memory here are not those of INT4",
        ]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on the device (a tied head counts once)."""
        tensors = [self._norm]
        projections = [] if self._tied else [self._head]
        for layer in self._layers:
            projections += [layer.qkv, layer.o, layer.gate_up, layer.down]
            tensors += [layer.attn_norm, layer.ffn_norm, *(layer.head_norms or ())]
            tensors += [t for t in (layer.attn_sub_norm, layer.ffn_sub_norm) if t is not None]
        return (
            self._embed.nbytes + sum(p.nbytes for p in projections) + sum(t.nbytes for t in tensors)
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache; 0 where it is another model's."""
        return sum(t.nbytes for t in self._cache or ()) if self._owns_cache else 0

    def close(self) -> None:
        super().close()
        self.graphs.clear()
        self._layers, self._cache, self._embed, self._head = [], (), None, None

    @torch.inference_mode()
    def fill_randomly(self) -> None:
        """Put random keys and values everywhere: for measuring steps far into a conversation,
        with ``filled`` set by hand, without the time of its prompt."""
        for tensor in self._cache:
            tensor[..., : self.config.head_dim].normal_()

    @torch.inference_mode()
    def decode_greedy(self, slots, tokens, steps: int) -> np.ndarray:
        """``steps`` more tokens of each slot, the most likely one each time: int32 [steps, n].

        Starts from ``tokens``, one of each of ``slots``. Tokens are chosen on the device and
        the steps follow each other without the host, which waits once, at the end.
        """
        slots = np.ascontiguousarray(slots, dtype=np.int32)
        tokens = np.ascontiguousarray(tokens, dtype=np.int32)
        positions = self.filled[slots.clip(0, self.slots - 1)].astype(np.int32)
        self._checked_rows(tokens, slots, positions)
        reach = int(positions.max(initial=-1)) + steps
        if steps < 1 or reach > self.context or len(set(slots.tolist())) != len(slots):
            raise ValueError(
                f"{steps} steps from position {positions.max(initial=0)} in {len(slots)} rows; "
                f"allowed: at least 1, up to the context of {self.context}, each slot once"
            )
        if not len(slots):
            return np.empty((steps, 0), dtype=np.int32)
        size = self._decode_size(len(slots))
        rows = self._rows(size)

        def step() -> Tensor:
            logits = self._logits(self._body(rows))
            chosen = logits.argmax(1).int()
            self._chosen[:, :size].index_copy_(0, self._step, chosen[None])
            self._step.add_(1)
            rows.tokens.copy_(chosen)
            rows.positions.add_((rows.positions >= 0).int())
            return self._sums[:size].add_(logits[:, 0])

        def fill() -> None:
            self._fill(tokens, slots, positions)
            self._step.zero_()
            self._sums.zero_()

        # A sum over the steps is finite only where every step's logits were.
        sums = self.graphs.run(("greedy", size), step, fill, steps)
        self._finite(sums[: len(slots), None].cpu().numpy())
        self.filled[slots] += steps
        return self._chosen[:steps, : len(slots)].cpu().numpy()

    @torch.inference_mode()
    def _forward(self, tokens, slots, positions, want) -> np.ndarray:
        n = len(tokens)
        if len(np.unique(slots)) == n and want.all() and n:
            return self._finite(self._decode(tokens, slots, positions))
        # Rows of a slot side by side, in their order: a tile of attention takes one slot's.
        order = np.argsort(slots, kind="stable")
        logits = np.empty((int(want.sum()), self.config.vocab_size), dtype=np.float32)
        place_of = np.cumsum(want) - 1
        for begin in range(0, n, self.prefill_rows):
            part = order[begin : begin + self.prefill_rows]
            last = self._prefill(tokens[part], slots[part], positions[part])
            wanted = np.flatnonzero(want[part])
            if len(wanted):
                logits[place_of[part[wanted]]] = self._wanted_logits(last, wanted)
        return self._finite(logits)

    @torch.inference_mode()
    def warm(self) -> None:
        """Compile and capture every bucket now, with padding alone: no request pays for it."""
        if not self._pads:
            return
        for size in sorted({decode_bucket(n + 1, self.slots) for n in range(self.slots)}):
            self._run_decode(size, (), (), ())
        most = min(self.prefill_rows, self.slots * self.context)
        for size in sorted({prefill_bucket(n + 1, self.prefill_rows) for n in range(most)}):
            last = self._run_prefill(size, (), (), (), np.zeros((2, 0), dtype=np.int32))
        # The head runs after a prefill step, uncaptured, over as many rows as are wanted.
        for wanted in {min(n, size) for n in WARMED_ROWS}:
            self._logits((last[0][:wanted], last[1][:wanted]))

    def _decode(self, tokens, slots, positions) -> np.ndarray:
        logits = self._run_decode(self._decode_size(len(tokens)), tokens, slots, positions)
        return logits[: len(tokens)].cpu().numpy()

    def _prefill(self, tokens, slots, positions) -> tuple[Tensor, Tensor]:
        n = len(tokens)
        size = prefill_bucket(n, self.prefill_rows) if self._pads else n
        tiles = _tiles(slots, tile_rows(size))
        result = self._run_prefill(size, tokens, slots, positions, tiles)
        return result[0], result[1]

    def _run_decode(self, size: int, tokens, slots, positions) -> Tensor:
        rows = self._rows(size)
        return self.graphs.run(
            ("decode", size),
            lambda: self._logits(self._body(rows)),
            lambda: self._fill(tokens, slots, positions),
        )

    def _run_prefill(self, size: int, tokens, slots, positions, tiles: np.ndarray) -> Tensor:
        rows = self._rows(size, self._tiles_of(size))
        return self.graphs.run(
            ("prefill", size),
            lambda: torch.stack(self._body(rows)),
            lambda: self._fill(tokens, slots, positions, tiles),
        )

    def _wanted_logits(self, last: tuple[Tensor, Tensor], wanted: np.ndarray) -> np.ndarray:
        """The head over some rows of a step, at most as many at a time as a bucket holds."""
        at = torch.from_numpy(wanted).to(self.device)
        pieces = [
            self._logits((last[0][piece], last[1][piece])).cpu().numpy()
            for piece in at.split(LOGITS_ROWS)
        ]
        return np.concatenate(pieces)

    def _body(self, rows: StepRows) -> tuple[Tensor, Tensor]:
        """Residual stream [M, hidden] after the last layer, and that layer's output to add."""
        c = self.config
        x, y = self._embedded(rows.tokens), None
        for layer in self._layers:
            qkv, x = layer.qkv(x, layer.attn_norm, c.rms_norm_eps, add=y)
            q = rope_append(qkv, rows, self._tables, layer.cache, layer.head_norms, c.rms_norm_eps)
            mixed = attend(q, rows, layer.cache, c.sliding_window)
            y, _ = layer.o(mixed, layer.attn_sub_norm, c.rms_norm_eps)
            gate_up, x = layer.gate_up(x, layer.ffn_norm, c.rms_norm_eps, add=y)
            y, _ = layer.down(gate_up, layer.ffn_sub_norm, c.rms_norm_eps, activation=c.activation)
        return x, y.float()

    def _embedded(self, tokens: Tensor) -> Tensor:
        if isinstance(self._embed, HalfMatrix):
            return self._embed.tiles[tokens].float()
        return embed(tokens, self._embed)

    def _logits(self, last: tuple[Tensor, Tensor]) -> Tensor:
        """float32 [M, vocab] from what :meth:`_body` gives."""
        x, y = last
        return self._head(x, self._norm, self.config.rms_norm_eps, add=y, out=torch.float32)[0]

    def _finite(self, logits: np.ndarray) -> np.ndarray:
        # A value that is not finite spoils its whole row: the quantiser makes it NaN, a matrix
        # product in half precision spreads it. So one column tells.
        if not np.isfinite(logits[:, :1]).all():
            raise NotFiniteError("head")
        return logits

    def _make_cache(self, other: LlamaGpu | None) -> tuple[Tensor, Tensor]:
        c = self.config
        shape = (c.num_layers, self.slots, c.num_kv_heads, self.context, padded(c.head_dim))
        dtype = KV_DTYPES[self.kv_dtype]
        if other is not None:
            cache = other._cache
            if tuple(cache[0].shape) != shape or cache[0].dtype != dtype:
                raise ValueError(
                    f"the other model's cache is {cache[0].dtype} {tuple(cache[0].shape)}; "
                    f"allowed: {dtype} {shape}. Give both the same slots, context and kv_dtype."
                )
            return cache
        try:
            return tuple(torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))
        except torch.OutOfMemoryError as error:
            size = 2 * int(np.prod(shape)) * dtype.itemsize
            raise MemoryError(
                f"no memory for a KV cache of {size / 1e9:.2f} GB ({self.slots} slots x "
                f"{self.context} positions); lower slots or context"
            ) from error

    def _place(self) -> None:
        """Move the weights to the device layer by layer, stacked."""
        c, w, self._layers = self.config, self.weights, []

        def vector(name: str) -> Tensor | None:
            value = w.pop(name, None)
            return None if value is None else value.to(self.device)

        def matrix(name: str) -> PackedWeight:
            return place(w.pop(name), self.device, self.dtype)

        def projection(prefix: str, *names: str) -> Projection:
            layers = [(matrix(prefix + n), vector(f"{prefix}{n}.bias")) for n in names]
            return Projection.of(layers, self.dtype)

        self._norm, self._embed, self._tied = vector("norm"), matrix("embed"), "head" not in w
        head = self._embed if self._tied else matrix("head")
        self._head = Projection(((head, None),), self.dtype)
        for i in range(c.num_layers):
            at = f"layers.{i}."
            head_norms = vector(at + "q_norm"), vector(at + "k_norm")
            if (head_norms[0] is None) != (head_norms[1] is None):
                raise ValueError(f"{at}q_norm without k_norm or the reverse; allowed: both or none")
            self._layers.append(
                DecoderLayer(
                    attn_norm=vector(at + "attn_norm"),
                    qkv=projection(at, "q", "k", "v"),
                    head_norms=None if head_norms[0] is None else head_norms,
                    attn_sub_norm=vector(at + "attn_sub_norm"),
                    o=projection(at, "o"),
                    ffn_norm=vector(at + "ffn_norm"),
                    gate_up=projection(at, "gate", "up"),
                    ffn_sub_norm=vector(at + "ffn_sub_norm"),
                    down=projection(at, "down"),
                    cache=(self._cache[0][i], self._cache[1][i]),
                )
            )
        # What LlamaModel asks for: whether there still is a model. Matrices as they lie here.
        self.weights = {"embed": self._embed, "head": head}

    def _make_buffers(self) -> None:
        c = self.config
        frequencies = torch.tensor(c.inv_freq, dtype=torch.float32)
        angles = torch.arange(self.context, dtype=torch.float32)[:, None] * frequencies
        self._tables = tuple(
            (table * c.rope_scaling).to(self.device) for table in (angles.cos(), angles.sin())
        )
        self._size = max(self.slots, self.prefill_rows)
        self._control = torch.zeros((5, self._size), dtype=torch.int32, device=self.device)
        self._chosen = torch.zeros((self.context, self.slots), dtype=torch.int32).to(self.device)
        self._sums = torch.zeros(self.slots).to(self.device)
        self._step = torch.zeros(1, dtype=torch.int64, device=self.device)

    def _rows(self, size: int, tiles: int = 0) -> StepRows:
        """Views of the static buffers for a bucket."""
        tokens, slots, positions = self._control[:3, :size]
        return StepRows(tokens, slots, positions, self._control[3:, :tiles] if tiles else None)

    def _decode_size(self, n: int) -> int:
        return decode_bucket(n, self.slots) if self._pads else n

    def _tiles_of(self, size: int) -> int:
        """Tiles that ``size`` rows can need: full ones, and one begun for each slot."""
        return min(size, -(-size // tile_rows(size)) + self.slots)

    def _fill(self, tokens, slots, positions, tiles: np.ndarray | None = None) -> None:
        """Copy the rows of a step into the static buffers; the rest becomes padding."""
        host = torch.zeros(
            (5, self._size), dtype=torch.int32, pin_memory=self.device.type == "cuda"
        )
        into = host.numpy()
        into[2] = -1
        into[0, : len(tokens)], into[1, : len(slots)] = tokens, slots
        into[2, : len(positions)] = positions
        if tiles is not None:
            into[3:, : tiles.shape[1]] = tiles
        self._control.copy_(host, non_blocking=True)


def random_llama(
    config: LlamaConfig,
    kind: str,
    *,
    tied: bool,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> dict[str, PackedWeight | Tensor]:
    """Weights of a model of this shape, made on the device, for measuring speed and memory.

    kind: of the linear layers, 'ternary', 'int8' or 'half'. tied: the head is the
    embedding. Embedding and head are half precision beside such layers, INT8 beside the others.
    """
    generator = torch.Generator(device).manual_seed(seed)
    weights: dict[str, PackedWeight | Tensor] = {"norm": torch.ones(config.hidden_size)}
    embedding = "half" if kind == "half" else "int8"
    for name in ("embed",) if tied else ("embed", "head"):
        shape = (config.vocab_size, config.hidden_size)
        weights[name] = random_matrix(shape, embedding, device, dtype, generator)
    for i in range(config.num_layers):
        for name in LINEARS:
            weights[f"layers.{i}.{name}"] = random_matrix(
                config.linear_shape(name), kind, device, dtype, generator
            )
        for name in ("attn_norm", "ffn_norm"):
            weights[f"layers.{i}.{name}"] = torch.ones(config.hidden_size)
    return weights


def _product(rows, half, matrix: PackedWeight, bias: Tensor | None, out: torch.dtype) -> Tensor:
    """y [M, N] in ``out`` of quantised rows or of ``half``, as the matrix takes them."""
    if isinstance(matrix, PackedTernary):
        return linear(rows, matrix, bias, dtype=out)
    if isinstance(matrix, HalfMatrix):
        bias = None if bias is None else bias.to(half.dtype)
        return torch.nn.functional.linear(half, matrix.tiles, bias).to(out)
    return linear_int8_rows(rows, matrix, bias, dtype=out)


def _stacked_bias(run: list[tuple[PackedWeight, Tensor | None]]) -> Tensor | None:
    if all(bias is None for _, bias in run):
        return None
    given = next(bias for _, bias in run if bias is not None)
    return torch.cat([given.new_zeros(w.shape[0]) if b is None else b for w, b in run])


def _tiles(slots: np.ndarray, most: int) -> np.ndarray:
    """int32 [2, T]: first row and rows of each tile; ``slots`` stand together."""
    starts = np.flatnonzero(np.diff(slots, prepend=-1))
    lengths = np.diff(np.append(starts, len(slots)))
    tiles = [
        (start + offset, min(most, length - offset))
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        for offset in range(0, length, most)
    ]
    return np.array(tiles, dtype=np.int32).reshape(-1, 2).T
