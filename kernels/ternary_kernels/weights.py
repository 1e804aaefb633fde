"""Packed weights: what a linear layer keeps in memory instead of a float matrix.

Six classes, one shape of interface: ``from_float`` / ``from_codes`` build, ``dequantize()``
gives the float32 matrix back, ``shape`` is (N, K) = (outputs, inputs), ``nbytes`` counts what
stays resident, ``state()`` / ``from_state()`` save and restore without repacking (the layout
is the same on every machine, so a memory-mapped file can be used as it is).

Bits a weight: :class:`PackedTernary` 2, :class:`PackedTernary3` 1.67, :class:`PackedTernary5` 1.6,
:class:`PackedInt4` 4, :class:`PackedInt8` 8, :class:`PackedHalf` 16; scales come on top (fp32: one
a tensor, one a row, or one for each group of 128 along K; INT4: fp16, one for each 32).
Layouts: see :mod:`ternary_kernels.packing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from . import packing
from .memory import in_huge_pages
from .quantizers import (
    GROUP,
    INT4_GROUP,
    absmean,
    quantize_int4,
    quantize_int8,
    rotate,
    rotation_block,
    spread,
)

GRANULARITIES = ("tensor", "row", "group128")


@dataclass(eq=False, slots=True)
class PackedWeight:
    """``tiles``: the kernel layout; ``row_scales``: as the kernels read them, fp32 (INT4: fp16).
    ``rotation``: inputs that are rotated together before they are rounded; 1: none.
    """

    shape: tuple[int, int]
    tiles: Tensor
    row_scales: Tensor | None
    scale: Tensor | None
    _dense: Tensor | None = None
    rotation: int = 1

    kind: ClassVar[str]

    @property
    def nbytes(self) -> int:
        """Bytes resident for this weight, scales included."""
        scales = 0 if self.row_scales is None else self.row_scales.nbytes
        return self.tiles.nbytes + scales

    @property
    def granularity(self) -> str:
        """'tensor', 'row', 'group128', 'group32' or 'none': how many scales there are."""
        if self.scale is None:
            return "none"
        if self.scale.ndim == 2:
            return "group128"
        return "tensor" if self.scale.numel() == 1 else "row"

    def rotated(self, rotation: int) -> Self:
        """This weight, whose codes were made of a rotated matrix: what it multiplies is rotated
        alike, in blocks of at most ``rotation`` inputs (:func:`.quantizers.rotate`); 0: not."""
        self.rotation = rotation_block(self.shape[1], rotation)
        return self

    def dequantize(self) -> Tensor:
        """The float32 matrix [N, K] that this weight stands for."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Tensors that restore this weight with :meth:`from_state`."""
        tensors = {"tiles": self.tiles, "shape": torch.tensor(self.shape)}
        if self.scale is not None:
            tensors["scale"] = self.scale
        if self.rotation > 1:
            tensors["rotation"] = torch.tensor(self.rotation)
        return tensors

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Restore from :meth:`state`; the tiles are used where they lie (memory-mapped too)."""
        N, K = (int(v) for v in state["shape"])
        tiles, expected = state["tiles"], cls._tile_shape(N, K)
        if tuple(tiles.shape) != expected or not tiles.is_contiguous():
            raise ValueError(
                f"tiles of a {cls.__name__} [{N}, {K}] have shape {tuple(tiles.shape)}; allowed: "
                f"contiguous {expected}. The file is truncated or belongs to another shape."
            )
        scale = state.get("scale")
        made = cls._build((N, K), tiles, None if scale is None else cls._checked(scale, N, K))
        made.rotation = int(state.get("rotation", 1))
        return made

    @staticmethod
    def _checked(scale: Tensor, N: int, K: int) -> Tensor:
        return _check_scale(scale, N, K)

    @classmethod
    def _build(cls, shape: tuple[int, int], tiles: Tensor, scale: Tensor | None) -> Self:
        rows = None if scale is None else _kernel_scales(scale, shape)
        return cls(shape, tiles, rows, scale)

    @staticmethod
    def _tile_shape(N: int, K: int) -> tuple[int, ...]:
        raise NotImplementedError


class Ternary(PackedWeight):
    """What the packings of ternary codes share."""

    @classmethod
    def from_float(cls, weight: Tensor, granularity: str = "tensor") -> Self:
        """BitNet b1.58 absmean quantisation of a float matrix [N, K].

        ``granularity``: 'tensor', 'row' or 'group128' (128 along K; 2-bit packing only).
        """
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity {granularity!r}; allowed: 'tensor', 'row', 'group128'")
        w = _check_floats(weight).detach().float()
        _require_finite(w)
        codes, scale = absmean(w, granularity)
        return cls.from_codes(codes.add_(1).to(torch.uint8), scale)

    @classmethod
    def from_codes(cls, codes: Tensor, scale: Tensor | float) -> Self:
        """Pack integer codes [N, K] of 0, 1, 2 (= w + 1); weight = scale * (code - 1).

        ``scale``: one number, [1], [N], [N, 1] or [N, ceil(K/128)], finite, multiplied.
        """
        packing.check_codes(codes)
        N, K = codes.shape
        return cls._build((N, K), in_huge_pages(cls._tile(codes)), _check_scale(scale, N, K))

    @classmethod
    def from_portable(cls, packed: Tensor, K: int, scale: Tensor | float) -> Self:
        """From the interchange form uint8 [N, ceil(K/4)], element k at bits 2*(k%4)."""
        return cls.from_codes(packing.unpack_portable(packed, K), scale)

    def codes(self) -> Tensor:
        """uint8 codes [N, K] of 0, 1, 2."""
        return self._untile(self.tiles, *self.shape)

    def dequantize(self) -> Tensor:
        dense = (self.codes().float() - 1.0) * spread(self.scale, self.shape[1])
        return rotate(dense, self.rotation)


class PackedTernary(Ternary):
    """Weights -1, 0, 1 in two bits each, scale a tensor, a row, or a group of 128."""

    __slots__ = ()
    kind = "ternary"
    _tile = staticmethod(packing.tile2)
    _untile = staticmethod(packing.untile2)

    @staticmethod
    def _tile_shape(N: int, K: int) -> tuple[int, ...]:
        return (-(-N // 16), -(-K // 16), 16, 4)


class _Denser(Ternary):
    """Codes across the borders of 128 columns: scale a tensor or a row."""

    __slots__ = ()

    @classmethod
    def _build(cls, shape: tuple[int, int], tiles: Tensor, scale: Tensor | None) -> Self:
        if scale is not None and scale.ndim == 2:
            raise ValueError(
                f"{cls.__name__} got one scale a group of 128; allowed: one a tensor or a row. "
                "Use PackedTernary for group scales."
            )
        return super()._build(shape, tiles, scale)


class PackedTernary3(_Denser):
    """Weights -1, 0, 1, three of them in five bits: a sixth fewer bytes than two bits each.

    With AVX-512 few rows of activations look their sums up, faster than they multiply two-bit
    codes; elsewhere the codes are unpacked each time, which is slow.
    """

    __slots__ = ()
    kind = "ternary3"
    _tile = staticmethod(packing.tile3)
    _untile = staticmethod(packing.untile3)

    @staticmethod
    def _tile_shape(N: int, K: int) -> tuple[int, ...]:
        return (-(-N // 32), -(-K // 48), 5, 64)


class PackedTernary5(_Denser):
    """Weights -1, 0, 1 in base 3, five a byte: 20 % fewer bytes, more arithmetic.

    For machines where memory is the limit.
    """

    __slots__ = ()
    kind = "ternary5"
    _tile = staticmethod(packing.tile5)
    _untile = staticmethod(packing.untile5)

    @staticmethod
    def _tile_shape(N: int, K: int) -> tuple[int, ...]:
        return (-(-N // 16), -(-K // 20), 16, 4)


class PackedInt8(PackedWeight):
    """INT8 weights -127..127 with one scale a row."""

    __slots__ = ()
    kind = "int8"

    @classmethod
    def from_float(cls, weight: Tensor) -> Self:
        """Symmetric absmax quantisation, one scale a row: scale = absmax / 127.

        Works through the rows in blocks, so a large embedding needs no float32 copy of itself.
        """
        values, scale = quantize_int8(_check_floats(weight).detach())
        _require_finite(scale)  # it is the largest of its row: no pass over the weights more
        return cls.from_codes(values, scale)

    @classmethod
    def _build(cls, shape: tuple[int, int], tiles: Tensor, scale: Tensor | None) -> Self:
        # One scale a row, always: a look-up in an embedding takes the row's own.
        return super()._build(shape, tiles, scale.expand(shape[0]).contiguous())

    @classmethod
    def from_codes(cls, values: Tensor, scale: Tensor | float) -> Self:
        """int8 [N, K] in -127..127 and the scale of each row ([N], [N, 1], [1] or a number)."""
        _check_matrix(values)
        if values.dtype != torch.int8:
            raise ValueError(f"INT8 weights have dtype {values.dtype}; allowed: torch.int8")
        if bool((values == -128).any()):
            raise ValueError(
                "INT8 weights hold -128; allowed: -127..127 (symmetric). Clamp and rescale them."
            )
        N, K = values.shape
        scale = _check_scale(scale, N, K)
        if scale.ndim == 2:
            raise ValueError(f"PackedInt8 got scales {tuple(scale.shape)}; allowed: one a row")
        return cls._build((N, K), in_huge_pages(packing.tile8(values)), scale)

    def values(self) -> Tensor:
        """int8 [N, K]."""
        return packing.untile8(self.tiles, *self.shape)

    def dequantize(self) -> Tensor:
        dense = self.values().float() * spread(self.scale, self.shape[1])
        return rotate(dense, self.rotation)

    @staticmethod
    def _tile_shape(N: int, K: int) -> tuple[int, ...]:
        return (-(-N // 16), 4 * -(-K // 16), 16, 4)


class PackedInt4(PackedWeight):
    """INT4 weights -8..7 with an fp16 scale for each 32 inputs of a row: 4.5 bits a weight."""

    __slots__ = ()
    kind = "int4"

    @classmethod
    def from_float(cls, weight: Tensor) -> Self:
        """Scales by least squares: see :func:`ternary_kernels.quantizers.quantize_int4`."""
        w = _check_floats(weight).detach()
        _require_finite(w)
        return cls.from_codes(*quantize_int4(w))

    @classmethod
    def from_codes(cls, values: Tensor, scale: Tensor) -> Self:
        """int8 [N, K] in -8..7 and scales [N, ceil(K/32)], which may be negative: fp16."""
        N, K = _check_matrix(values).shape
        tiles = packing.tile4(values)
        return cls._build((N, K), in_huge_pages(tiles), cls._checked(scale, N, K))

    @classmethod
    def from_portable(cls, packed: Tensor, K: int, scale: Tensor) -> Self:
        """From the interchange form uint8 [N, ceil(K/2)], w + 8 of element k at bits 4*(k%2)."""
        return cls.from_codes(packing.unpack_portable4(packed, K), scale)

    @property
    def granularity(self) -> str:
        return "group32"

    def values(self) -> Tensor:
        """int8 [N, K] in -8..7."""
        return packing.untile4(self.tiles, *self.shape)

    def dequantize(self) -> Tensor:
        dense = self.values().float() * spread(self.scale.float(), self.shape[1], INT4_GROUP)
        return rotate(dense, self.rotation)

    @classmethod
    def _build(cls, shape: tuple[int, int], tiles: Tensor, scale: Tensor | None) -> Self:
        if scale is None:
            raise ValueError("INT4 weights come without scales; allowed: one for each 32 inputs")
        return cls(shape, tiles, _by_row_group(scale), scale)

    @staticmethod
    def _checked(scale: Tensor, N: int, K: int) -> Tensor:
        s = torch.as_tensor(scale).detach().to("cpu", torch.float16).clone()
        expected = (N, -(-K // INT4_GROUP))
        if tuple(s.shape) != expected:
            raise ValueError(
                f"scale has shape {tuple(s.shape)}; allowed for INT4 [{N}, {K}]: "
                f"{list(expected)}, one for each {INT4_GROUP} inputs of a row"
            )
        if not bool(s.isfinite().all()):
            raise ValueError(
                "scale holds what is not finite in float16; allowed: up to 65504. "
                "Check the checkpoint."
            )
        return s

    @staticmethod
    def _tile_shape(N: int, K: int) -> tuple[int, ...]:
        return (-(-N // 16), 4 * -(-K // INT4_GROUP), 16, 4)


class PackedHalf(PackedWeight):
    """bf16 or fp16 weights: the full-precision arm."""

    __slots__ = ()
    kind = "half"

    @classmethod
    def from_float(cls, weight: Tensor, dtype: torch.dtype | None = None) -> Self:
        """Keep bf16 and fp16 as they are; round float32 to ``dtype`` (default bf16)."""
        _check_matrix(weight)
        if dtype is None:
            dtype = weight.dtype if weight.dtype != torch.float32 else torch.bfloat16
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"PackedHalf got {dtype}; allowed: torch.bfloat16, torch.float16")
        values = weight.detach().to(dtype)
        if not bool(values.isfinite().all()):
            raise ValueError(
                f"weights are not finite in {dtype}; allowed: finite values. "
                "Use dtype=torch.bfloat16 if the range of fp16 is too small."
            )
        N, K = values.shape
        return cls._build((N, K), in_huge_pages(packing.tile16(values)), None)

    def rotated(self, rotation: int) -> Self:
        raise ValueError("half-precision weights are not rounded; allowed: a matrix as it is")

    def dequantize(self) -> Tensor:
        return packing.untile16(self.tiles, *self.shape).float()

    @staticmethod
    def _tile_shape(N: int, K: int) -> tuple[int, ...]:
        return (-(-N // 16), K, 16)


def require_one_rotation(weights: list[PackedWeight]) -> None:
    """ValueError for weights that read one input and want it rotated differently."""
    if len({weight.rotation for weight in weights}) > 1:
        raise ValueError(
            f"weights of one input with rotations {[w.rotation for w in weights]} (1: none); "
            "allowed: one for all. Multiply them one by one."
        )


def _check_matrix(weight: Tensor) -> Tensor:
    if weight.ndim != 2 or weight.shape[0] < 1 or weight.shape[1] < 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; allowed: [N, K] with N, K >= 1")
    return weight


def _check_floats(weight: Tensor) -> Tensor:
    _check_matrix(weight)
    if not weight.dtype.is_floating_point:
        raise ValueError(
            f"weight has dtype {weight.dtype}; allowed: a float type. Use from_codes for codes."
        )
    return weight


def _require_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError("weight holds NaN or Inf; allowed: finite values. Check the checkpoint.")


def _check_scale(scale: Tensor | float, N: int, K: int) -> Tensor:
    s = torch.as_tensor(scale, dtype=torch.float32).detach().cpu().clone()
    groups = -(-K // GROUP)
    if s.numel() == 1:
        s = s.reshape(1)
    elif s.shape in ((N,), (N, 1)):
        s = s.reshape(N)
    elif s.shape != (N, groups):
        raise ValueError(
            f"scale has shape {tuple(s.shape)}; allowed for a weight [{N}, {K}]: one number, "
            f"[{N}] (a row) or [{N}, {groups}] (a group of {GROUP})"
        )
    if not bool(s.isfinite().all()):
        raise ValueError("scale holds NaN or Inf; allowed: finite values. Check the checkpoint.")
    return s


def _kernel_scales(scale: Tensor, shape: tuple[int, int]) -> Tensor:
    """fp32 [16] for one scale, [N padded to 16] for rows, [N/16, groups, 16] for groups."""
    if scale.numel() == 1:
        return scale.expand(16).contiguous()
    if scale.ndim == 2:
        return _by_row_group(scale)
    return torch.nn.functional.pad(scale, (0, -shape[0] % 16)).contiguous()


def _by_row_group(scale: Tensor) -> Tensor:
    """[N, groups] -> [N/16, groups, 16]."""
    rows = torch.nn.functional.pad(scale, (0, 0, 0, -scale.shape[0] % 16))
    return rows.unflatten(0, (-1, 16)).transpose(1, 2).contiguous()
