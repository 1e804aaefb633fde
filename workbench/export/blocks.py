"""Ternary and INT8 matrices in the block types of llama.cpp and bitnet.cpp, value for value.

I2_S, bitnet.cpp's own, has one float32 scale for a matrix. Of the others a block is a run of
neighbouring inputs of one row: a float16 scale d and their codes. A type holds a matrix when a row
is a whole number of blocks and no block spans two scales; then every code is kept, and the only
rounding is that of the scale to float16. llama.cpp's own quantisers would choose scale and codes
anew from the values and lose some on the way, all but those of the TQ types, whose blocks come from
the ``gguf`` package.

Shape legend: N rows (outputs), K inputs, B inputs of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ternary_kernels.packing import pack_portable, unpack_portable
from torch import Tensor

from workbench.errors import ConfigError
from workbench.ternary import i2_s
from workbench.ternary.i2_s import pack_i2_s
from workbench.ternary.quantize import spread

LARGEST_SCALE_ERROR = 0.01
"""Relative. float16 keeps 11 bits of a scale from 6e-5 on; below it has ever fewer."""


@dataclass(frozen=True)
class BlockType:
    """id: the type's number in a GGUF file. size: inputs of a block. bits: a weight, the scale's
    share included. encode: codes uint8 [N, K], w + 1, and float32 block scales [N, K/B] -> uint8
    [N, bytes of a row]. one_scale: it has one for the whole matrix, in float32."""

    name: str
    id: int
    size: int
    bits: float
    encode: Callable[[np.ndarray, np.ndarray], np.ndarray]
    one_scale: bool = False

    def holds(self, K: int, scale: Tensor) -> bool:
        """Whether a matrix [N, K] fits, its scale [1], [N] or [N, ceil(K/128)]."""
        if self.one_scale and scale.numel() > 1:
            return False
        return K % self.size == 0 and (scale.ndim == 1 or 128 % self.size == 0)


def _tq(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def encode(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        import gguf

        each = codes.shape[1] // scales.shape[1]
        values = (codes.astype(np.float32) - 1) * np.repeat(scales, each, axis=1)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])

    return encode


def _q2_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """d, then the input k of a block at bits 2 (k % 4) of byte k // 4, as w + 1."""
    import torch

    packed = pack_portable(torch.from_numpy(codes)).numpy()
    return _blocks(scales, packed.reshape(*scales.shape, 16))


def _q4_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """d, then byte k holds the inputs k (low half) and k + 16 (high half), as w + 8."""
    halves = (codes + 7).reshape(*scales.shape, 2, 16)
    return _blocks(scales, halves[..., 0, :] | halves[..., 1, :] << 4)


def _i2_s(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return pack_i2_s(codes, float(scales.flat[0]))


def q8_0(int8: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 [N, K] with a scale a row, float32 [N] -> uint8 [N, K/32 * 34]: d, then 32 values."""
    blocks = int8.shape[1] // Q8_0_SIZE
    scales = np.repeat(scale[:, None], blocks, axis=1)
    return _blocks(scales, int8.view(np.uint8).reshape(*scales.shape, Q8_0_SIZE))


def q4_0(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 [N, K] in -8..7 with a scale for each 32, float16 [N, K/32] -> uint8 [N, K/32 * 18]:
    d, then byte k holds the inputs k (low half) and k + 16 (high half), as w + 8."""
    halves = (values + 8).astype(np.uint8).reshape(*scale.shape, 2, 16)
    return _blocks(scale, halves[..., 0, :] | halves[..., 1, :] << 4)


NEWEST = BlockType("Q2_0", 42, 64, 2.25, _q2_0)
"""Known to llama.cpp since 2026."""
WIDEST = BlockType("Q4_0", 2, 32, 4.5, _q4_0)
"""Holds nearly every width, in every llama.cpp."""
I2_S = BlockType("I2_S", i2_s.TYPE, i2_s.RUN, 2.0, _i2_s, one_scale=True)
"""Of bitnet.cpp alone."""
TERNARY_TYPES = {
    each.name.lower(): each
    for each in (
        BlockType("TQ2_0", 35, 256, 2.0625, _tq("TQ2_0")),
        BlockType("TQ1_0", 34, 256, 1.6875, _tq("TQ1_0")),
        NEWEST,
        WIDEST,
        I2_S,
    )
}
"""By the names of ``workbench export --type``."""
Q8_0_SIZE = 32


def ternary_blocks(
    kind: BlockType, codes: Tensor, scale: Tensor, K: int, name: str
) -> tuple[np.ndarray, float]:
    """The rows of a ternary matrix as bytes, and the largest relative error of a scale; I2_S is
    flat, and its scale has none.

    codes: uint8 [N, ceil(K/4)], portable. scale: float32, as in :meth:`BlockType.holds`, which
    must be true. Raises ConfigError for a scale that float16 cannot hold.
    """
    N = codes.shape[0]
    if scale.ndim == 2:
        scales = spread(scale, K)[:, :: kind.size]
    else:
        scales = scale.reshape(-1, 1).expand(N, K // kind.size)
    scales = scales.numpy()
    if kind.one_scale:
        return kind.encode(unpack_portable(codes, K).numpy(), scales), 0.0
    error = scale_error(scales, name)
    return kind.encode(unpack_portable(codes, K).numpy(), scales), error


def scale_error(scales: np.ndarray, name: str) -> float:
    """The largest relative error of ``scales`` in float16. ConfigError above 1 %."""
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16).astype(np.float64)
    error = float(np.max(np.abs(rounded - scales) / scales))
    if error > LARGEST_SCALE_ERROR:
        worst = scales.flat[np.argmax(np.abs(rounded - scales) / scales)]
        raise ConfigError(
            f"{name} has the scale {worst:.3g}, which float16 rounds by {error:.0%}",
            allowed=f"scales that float16 holds within {LARGEST_SCALE_ERROR:.0%}: 1e-6 to 65504",
            next_step="that layer has hardly any weights or exploded; look at its telemetry",
        )
    return error


def _blocks(scales: np.ndarray, bytes_of_blocks: np.ndarray) -> np.ndarray:
    """float32 [N, K/B] and uint8 [N, K/B, n] -> uint8 [N, K/B * (2 + n)], the scale first."""
    d = np.ascontiguousarray(scales.astype("<f2")).view(np.uint8).reshape(*scales.shape, 2)
    return np.concatenate([d, bytes_of_blocks], axis=-1).reshape(scales.shape[0], -1)
