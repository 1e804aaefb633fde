"""Matrices as ``com.microsoft.MatMulNBits`` holds them: codes of 2, 4 or 8 bits in blocks.

A block of B inputs of one row has B codes, the first in the lowest bits of a byte, a scale and an
integer zero point: weight = (code - zero point) * scale. Ternary codes are w + 1 with the zero
point 1 in 2 bits, which is the packed folder's own form byte for byte; in 4 and 8 bits the zero
point is the one that the operator takes where none is given, 8 and 128. Codes are never rounded.

Where the activations are INT8, as BitNet's are, scales of a tensor or a row stand behind the
product and those of the operator are 1: then its sums are sums of whole numbers, which float32
holds exactly up to 2**24, and the product is that of the engine whatever the order of the
additions. Scales of groups of 128 inputs are the operator's own.

Shape legend: N outputs, K inputs, B inputs of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from ternary_kernels import PackedHalf, PackedInt4, PackedInt8, PackedTernary
from ternary_kernels.quantizers import INT4_GROUP

from workbench.errors import ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto

Bits = Literal[2, 4, 8]
BLOCK = 128
"""Of matrices whose scales do not ask for another one: onnxruntime takes 16 to 256."""
ROUNDED_BLOCK = 32
"""Of matrices that are rounded to 4 or 8 bits: each block has a scale of its own."""
DOMAIN, OPERATOR = "com.microsoft", "MatMulNBits"
LUT_ROWS = 128
"""onnxruntime's table look-up takes 2-bit matrices whose N divides by this."""


@dataclass(frozen=True)
class NBitsMatrix:
    """codes: uint8 [N, ceil(K/B), B * bits / 8]. scales: float32 [N, ceil(K/B)]. zero_points:
    packed like the codes of a row, uint8 [N, ceil(ceil(K/B) * bits / 8)]; None for
    2**(bits - 1). behind: float32 [1] or [N], by which the product is to be multiplied; None
    for none."""

    bits: Bits
    block: int
    shape: tuple[int, int]
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None = None
    behind: np.ndarray | None = None

    def values(self) -> np.ndarray:
        """The whole numbers [N, K] that the codes stand for, int16."""
        N, K = self.shape
        blocks = self.codes.shape[1]
        codes = unpacked(self.codes, self.bits).reshape(N, -1)[:, :K].astype(np.int16)
        if self.zero_points is None:
            return codes - 2 ** (self.bits - 1)
        zeros = unpacked(self.zero_points, self.bits)[:, :blocks].astype(np.int16)
        return codes - np.repeat(zeros, self.block, axis=1)[:, :K]

    @property
    def scale(self) -> np.ndarray:
        """As a packed folder has it: what is behind the product, or [N, ceil(K/B)]."""
        return self.scales if self.behind is None else self.behind


def ternary_matrix(weight: PackedTernary, bits: Bits = 2) -> NBitsMatrix:
    """Every code as it is, w + zero point."""
    N, K = weight.shape
    zero = 1 if bits == 2 else 2 ** (bits - 1)
    codes = weight.codes().numpy() + np.uint8(zero - 1)
    blocks = -(-K // BLOCK)
    assert weight.scale is not None
    scale = weight.scale.numpy()
    by_group = scale.ndim == 2
    zeros = np.full((N, blocks), zero, np.uint8) if bits == 2 else None
    return NBitsMatrix(
        bits,
        BLOCK,
        (N, K),
        _packed_blocks(codes, bits, BLOCK, zero),
        scale if by_group else np.ones((N, blocks), np.float32),
        None if zeros is None else packed(zeros, bits, zero),
        None if by_group else scale,
    )


def int8_matrix(weight: PackedInt8) -> NBitsMatrix:
    """Every value as it is, + 128."""
    N, K = weight.shape
    codes = (weight.values().numpy().astype(np.int16) + 128).astype(np.uint8)
    ones = np.ones((N, -(-K // BLOCK)), np.float32)
    assert weight.scale is not None
    behind = weight.scale.numpy()
    return NBitsMatrix(8, BLOCK, (N, K), _packed_blocks(codes, 8, BLOCK, 128), ones, None, behind)


def int4_matrix(weight: PackedInt4) -> NBitsMatrix:
    """Every value as it is, + 8."""
    N, K = weight.shape
    codes = (weight.values().numpy() + 8).astype(np.uint8)
    assert weight.scale is not None
    scales = weight.scale.float().numpy()
    blocks = _packed_blocks(codes, 4, INT4_GROUP, 8)
    return NBitsMatrix(4, INT4_GROUP, (N, K), blocks, scales, None, None)


def rounded_matrix(weight: PackedHalf, bits: Bits) -> NBitsMatrix:
    """A matrix in half precision rounded to 4 or 8 bits, its blocks from -absmax to absmax."""
    w = weight.dequantize().float()
    N, K = w.shape
    most, zero = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    blocks = torch.nn.functional.pad(w, (0, -K % ROUNDED_BLOCK)).view(N, -1, ROUNDED_BLOCK)
    scales = (blocks.abs().amax(-1) / most).clamp_(min=1e-12)
    codes = (blocks / scales[..., None]).round_().clamp_(-most, most) + zero
    return NBitsMatrix(
        bits,
        ROUNDED_BLOCK,
        (N, K),
        packed(codes.to(torch.uint8).numpy(), bits, zero),
        scales.numpy(),
    )


def packed(codes: np.ndarray, bits: Bits, fill: int) -> np.ndarray:
    """uint8 [..., n] codes -> uint8 [..., ceil(n * bits / 8)], the first in the lowest bits; the
    rest of the last byte holds ``fill``."""
    in_byte = 8 // bits
    pad = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % in_byte)]
    parts = np.pad(codes, pad, constant_values=fill).reshape(*codes.shape[:-1], -1, in_byte)
    shifts = np.arange(in_byte, dtype=np.uint8) * np.uint8(bits)
    return np.bitwise_or.reduce(parts << shifts, axis=-1)


def unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    """Inverse of :func:`packed`, filling and all: uint8 [..., n] -> [..., n * 8 / bits]."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    mask = np.uint8(2**bits - 1)
    return ((data[..., None] >> shifts) & mask).reshape(*data.shape[:-1], -1)


def _packed_blocks(codes: np.ndarray, bits: Bits, block: int, zero: int) -> np.ndarray:
    N, K = codes.shape
    whole = np.pad(codes, [(0, 0), (0, -K % block)], constant_values=zero)
    return packed(whole.reshape(N, -1, block), bits, zero)


def read_matrices(model: ModelProto) -> Iterator[tuple[str, NBitsMatrix]]:
    """The matrices of a file's ``MatMulNBits`` nodes, by the names of the nodes.

    Raises ConfigError for a node whose tensors have other sizes than it says, or are not there.
    """
    from onnx import helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    behind = {
        node.input[0]: node.input[1] for node in model.graph.node if node.name.endswith(".scaled")
    }
    for node in model.graph.node:
        if node.op_type != OPERATOR or node.domain != DOMAIN:
            continue
        given: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        try:
            arrays = [numpy_helper.to_array(tensors[name]) for name in node.input[1:] if name]
            scale = behind.get(node.output[0])
            last = None if scale is None else numpy_helper.to_array(tensors[scale])
            bits, block = given["bits"], given["block_size"]
            shape = given["N"], given["K"]
            blocks = -(-shape[1] // block)
            codes = arrays[0].reshape(shape[0], blocks, block * bits // 8)
            scales = arrays[1].reshape(shape[0], blocks)
            zeros = arrays[2].reshape(shape[0], -1) if len(arrays) > 2 else None
        except (KeyError, ValueError, IndexError) as error:
            raise ConfigError(
                f"{node.name} ({OPERATOR}) cannot be read: {type(error).__name__}: {error}",
                allowed="codes, scales and zero points of the sizes that the node says",
                next_step="export the model again",
            ) from error
        yield node.name, NBitsMatrix(bits, block, shape, codes, scales, zeros, last)
