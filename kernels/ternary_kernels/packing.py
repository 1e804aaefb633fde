"""How packed weights lie in memory: one layout for every instruction set.

Every layout cuts the matrix [N, K] (N outputs, K inputs) into *row groups* of 16 rows. One
64-byte vector then holds 16 rows x 4 consecutive k, which is what one 512-bit ``vpdpbusd``
(or two 256-bit ones, or four NEON ``sdot``) eats: lane r sums four products of row r, so a
whole row group finishes without a single horizontal sum, and the activations are used in
their natural order, four at a time, broadcast to all lanes.

- ``tiles2``  [N/16, K/16, 16, 4] uint8: byte (r, b) of block kb holds the four codes of
  k = 16*kb + 4*p + b at bits 2*p (p = 0..3). Code = w + 1, in 0..2; 3 is forbidden.
- ``tiles5``  [N/16, K/20, 16, 4] uint8: five base-3 digits a byte, k = 20*kb + 4*p + b.
  The stored byte is ceil(sum(digit_p * 3^(4-p)) * 256 / 243), so digit p is the carry of
  multiplying by 3 for the (p+1)-th time: no division and no table.
- ``tiles3``  [N/32, K/48, 5, 64] uint8: codes of three weights in five bits, for look-ups of
  sums and not for dot products. A vector of 64 bytes is 32 rows x one little-endian word. Code j
  of a block is the sum of digit_i * 3^i of k = 48*kb + 3*j + i; codes 3*v to 3*v + 2 lie at bits
  0, 5 and 10 of vector v, and code 15 in the top bits, the first vector's the highest.
- ``tiles4``  [N/16, K/8, 16, 4] uint8: byte (r, b) of block kb holds the codes w + 8 of
  k = 8*kb + 4*p + b at bits 4*p (p = 0, 1), in whole groups of 32 k (four blocks).
- ``tiles8``  [N/16, K/4, 16, 4] uint8: w + 128.
- ``tiles16`` [N/16, K, 16]: bf16 or fp16 as they are.

N and K are padded to whole blocks with zero weights; activations are padded with zeros, so
the padding adds nothing to any dot product.

The *portable* forms for files: ternary uint8 [N, ceil(K/4)], element k in byte k//4 at bits
2*(k%4); INT4 uint8 [N, ceil(K/2)], element k in byte k//2 at bits 4*(k%2).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROW_GROUP = 16
INT4_GROUP = 32
TRITS_PER_BYTE = 5
_POWERS_OF_3 = (81, 27, 9, 3, 1)


def check_codes(codes: Tensor) -> None:
    """Raise unless ``codes`` is a 2-D integer tensor of 0, 1, 2."""
    if codes.ndim != 2 or codes.shape[0] < 1 or codes.shape[1] < 1:
        raise ValueError(
            f"codes have shape {tuple(codes.shape)}; allowed: [N, K] with N, K >= 1. "
            "Reshape them to one row an output."
        )
    if codes.dtype.is_floating_point or codes.dtype == torch.bool:
        raise ValueError(
            f"codes have dtype {codes.dtype}; allowed: an integer type holding w + 1. "
            "Use from_float for float weights."
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high > 2:
        raise ValueError(
            f"codes span {low} to {high}; allowed: 0, 1, 2 (w + 1; the two-bit code 3 is "
            "forbidden). The data is damaged or was packed under another convention."
        )


def pack_portable(codes: Tensor) -> Tensor:
    """uint8 [N, K] codes 0..2 -> uint8 [N, ceil(K/4)], element k at bits 2*(k%4) of byte k//4.

    The codes that pad the last byte are 1 (weight zero).
    """
    check_codes(codes)
    c_NKp = _pad(codes.to(torch.uint8), 1, 4, value=1).unflatten(1, (-1, 4))
    return _merge_bits(c_NKp, dim=2)


def unpack_portable(packed: Tensor, K: int) -> Tensor:
    """Inverse of :func:`pack_portable`: uint8 [N, ceil(K/4)] -> uint8 codes [N, K]."""
    if packed.dtype != torch.uint8 or packed.ndim != 2:
        raise ValueError(
            f"packed codes are {packed.dtype} {tuple(packed.shape)}; allowed: uint8 [N, ceil(K/4)]"
        )
    if K < 1 or packed.shape[1] != -(-K // 4) or packed.shape[0] < 1:
        raise ValueError(
            f"packed codes have shape {tuple(packed.shape)}, but K = {K} needs "
            f"[N, {-(-K // 4)}]: the data is truncated or K is wrong"
        )
    codes = _split_bits(packed).flatten(1)[:, :K].contiguous()
    if bool((codes == 3).any()):
        row = int((codes == 3).any(1).nonzero()[0])
        raise ValueError(
            f"row {row} holds the forbidden code 3; allowed: 0, 1, 2 (w + 1). "
            "The data is damaged or was packed under another convention."
        )
    return codes


def tile2(codes: Tensor) -> Tensor:
    """uint8 codes [N, K] -> tiles2 [N/16, K/16, 16, 4]."""
    check_codes(codes)
    c = _pad(_pad(codes.to(torch.uint8), 0, ROW_GROUP, value=1), 1, 16, value=1)
    c = c.unflatten(1, (-1, 4, 4)).unflatten(0, (-1, ROW_GROUP))  # [G, r, kb, p, b]
    return _merge_bits(c, dim=3).transpose(1, 2).contiguous()


def untile2(tiles: Tensor, N: int, K: int) -> Tensor:
    """Inverse of :func:`tile2`."""
    c = _split_bits(tiles)  # [G, kb, r, b, p]
    return c.permute(0, 2, 1, 4, 3).flatten(2).flatten(0, 1)[:N, :K].contiguous()


def tile5(codes: Tensor) -> Tensor:
    """uint8 codes [N, K] -> tiles5 [N/16, K/20, 16, 4]."""
    check_codes(codes)
    c = _pad(_pad(codes.to(torch.uint8), 0, ROW_GROUP, value=1), 1, 20, value=1)
    c = c.unflatten(1, (-1, 5, 4)).unflatten(0, (-1, ROW_GROUP))  # [G, r, kb, p, b]
    value = torch.zeros((*c.shape[:3], 4), dtype=torch.int32)
    for p, power in enumerate(_POWERS_OF_3):
        value += c[:, :, :, p].int() * power
    byte = (value * 256 + 242) // 243
    return byte.to(torch.uint8).transpose(1, 2).contiguous()


def untile5(tiles: Tensor, N: int, K: int) -> Tensor:
    """Inverse of :func:`tile5`."""
    rest = tiles.int()  # [G, kb, r, b]
    digits = []
    for _ in range(TRITS_PER_BYTE):
        rest = rest * 3
        digits.append((rest >> 8).to(torch.uint8))
        rest = rest & 0xFF
    c = torch.stack(digits, dim=3)  # [G, kb, r, p, b]
    return c.permute(0, 2, 1, 3, 4).flatten(2).flatten(0, 1)[:N, :K].contiguous()


def tile3(codes: Tensor) -> Tensor:
    """uint8 codes [N, K] -> tiles3 [N/32, K/48, 5, 64]."""
    check_codes(codes)
    c = _pad(_pad(codes.to(torch.uint8), 0, 2 * ROW_GROUP, value=1), 1, 48, value=1)
    c = c.unflatten(1, (-1, 16, 3)).unflatten(0, (-1, 2 * ROW_GROUP))  # [V, r, kb, j, i]
    first, second, third = c.int().unbind(4)
    code = (first + 3 * second + 9 * third).permute(0, 2, 3, 1)  # [V, kb, j, r]
    fields = code[:, :, :15].unflatten(2, (5, 3))
    top = torch.stack([code[:, :, 15] >> (4 - v) & 1 for v in range(5)], dim=2)
    word = fields[:, :, :, 0] | fields[:, :, :, 1] << 5 | fields[:, :, :, 2] << 10 | top << 15
    return torch.stack([word & 0xFF, word >> 8], dim=-1).to(torch.uint8).flatten(3)


def untile3(tiles: Tensor, N: int, K: int) -> Tensor:
    """Inverse of :func:`tile3`."""
    low, high = tiles.int().unflatten(3, (-1, 2)).unbind(4)
    word = low | high << 8  # [V, kb, v, r]
    fields = torch.stack([word >> shift & 31 for shift in (0, 5, 10)], dim=3).flatten(2, 3)
    top = sum((word[:, :, v] >> 15) << (4 - v) for v in range(5))
    code = torch.cat([fields, top[:, :, None]], dim=2)  # [V, kb, j, r]
    c = torch.stack([code // power % 3 for power in (1, 3, 9)], dim=-1)
    c = c.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)[:N, :K]
    return c.to(torch.uint8).contiguous()


def pack_portable4(values: Tensor) -> Tensor:
    """int8 [N, K] in -8..7 -> uint8 [N, ceil(K/2)]: w + 8 of element k at bits 4*(k%2).

    Element k lies in byte k//2. The code that pads the last byte is 8 (weight zero).
    """
    codes = _pad(_int4_codes(values), 1, 2, value=8)
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack_portable4(packed: Tensor, K: int) -> Tensor:
    """Inverse of :func:`pack_portable4`: uint8 [N, ceil(K/2)] -> int8 [N, K] in -8..7."""
    if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[0] < 1:
        raise ValueError(
            f"packed codes are {packed.dtype} {tuple(packed.shape)}; allowed: uint8 [N, ceil(K/2)]"
        )
    if K < 1 or packed.shape[1] != -(-K // 2):
        raise ValueError(
            f"packed codes have shape {tuple(packed.shape)}, but K = {K} needs "
            f"[N, {-(-K // 2)}]: the data is truncated or K is wrong"
        )
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)[:, :K]
    return codes.to(torch.int8).sub_(8).contiguous()


def tile4(values: Tensor) -> Tensor:
    """int8 [N, K] in -8..7 -> tiles4 [N/16, K/8, 16, 4], K padded to whole groups of 32."""
    c = _pad(_pad(_int4_codes(values), 0, ROW_GROUP, value=8), 1, INT4_GROUP, value=8)
    c = c.unflatten(1, (-1, 2, 4)).unflatten(0, (-1, ROW_GROUP))  # [G, r, kb, p, b]
    low, high = c.unbind(3)
    return (low | (high << 4)).transpose(1, 2).contiguous()


def untile4(tiles: Tensor, N: int, K: int) -> Tensor:
    """Inverse of :func:`tile4`."""
    c = torch.stack([tiles & 15, tiles >> 4], dim=3)  # [G, kb, r, p, b]
    c = c.permute(0, 2, 1, 3, 4).flatten(2).flatten(0, 1)[:N, :K]
    return c.to(torch.int8).sub_(8).contiguous()


def tile8(values: Tensor) -> Tensor:
    """int8 [N, K] in -127..127 -> tiles8 [N/16, K/4, 16, 4], K padded to 16."""
    v = _pad(_pad(values.to(torch.int8), 0, ROW_GROUP, value=0), 1, 16, value=0)
    v = v.unflatten(1, (-1, 4)).unflatten(0, (-1, ROW_GROUP)).transpose(1, 2)
    return (v.contiguous().view(torch.uint8)) ^ 0x80


def untile8(tiles: Tensor, N: int, K: int) -> Tensor:
    """Inverse of :func:`tile8`."""
    v = (tiles ^ 0x80).view(torch.int8)
    return v.transpose(1, 2).flatten(2).flatten(0, 1)[:N, :K].contiguous()


def tile16(values: Tensor) -> Tensor:
    """bf16 or fp16 [N, K] -> tiles16 [N/16, K, 16]."""
    v = _pad(values, 0, ROW_GROUP, value=0)
    return v.unflatten(0, (-1, ROW_GROUP)).transpose(1, 2).contiguous()


def untile16(tiles: Tensor, N: int, K: int) -> Tensor:
    """Inverse of :func:`tile16`."""
    return tiles.transpose(1, 2).flatten(0, 1)[:N, :K].contiguous()


def _int4_codes(values: Tensor) -> Tensor:
    """w + 8 as uint8."""
    if values.ndim != 2 or values.dtype != torch.int8 or values.shape[0] < 1 or values.shape[1] < 1:
        raise ValueError(
            f"INT4 weights are {values.dtype} {tuple(values.shape)}; allowed: torch.int8 [N, K] "
            "with N, K >= 1"
        )
    low, high = int(values.min()), int(values.max())
    if low < -8 or high > 7:
        raise ValueError(
            f"INT4 weights span {low} to {high}; allowed: -8 to 7. The data is damaged or was "
            "quantised otherwise."
        )
    return (values + 8).to(torch.uint8)


def _pad(x: Tensor, dim: int, multiple: int, *, value: int) -> Tensor:
    missing = -x.shape[dim] % multiple
    if missing == 0:
        return x
    pad = [0, 0, 0, missing] if dim == 0 else [0, missing, 0, 0]
    return torch.nn.functional.pad(x, pad, value=value)


def _merge_bits(codes: Tensor, dim: int) -> Tensor:
    a, b, c, d = codes.unbind(dim)
    return a | (b << 2) | (c << 4) | (d << 6)


def _split_bits(packed: Tensor) -> Tensor:
    return torch.stack([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1)
