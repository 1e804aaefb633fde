"""An embedding or a head whose rows have two precisions: what texts use often, and the rest.

Few tokens make up most of any text, so a table of 128,256 rows in INT8 spends most of its bytes on
rows that are hardly ever looked up and hardly ever the answer. Here the rows of frequent tokens
stay INT8 and the others are INT4, so that the rounding of four bits falls where little probability
lies. Rows may be rotated before they are rounded (:func:`.quantizers.rotate`), which spreads the
few large inputs that a model's last layer has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from .quantizers import quantize_int4, quantize_int8, rotate
from .weights import PackedInt4, PackedInt8, PackedWeight

BLOCK = 4096
"""Rows that are rounded at a time: codes need no float copy of them all."""


@dataclass(eq=False, slots=True)
class PackedMixed:
    """``first`` [F, K] and ``second`` [N - F, K] together are a table [N, K].

    ``places``: int32 [N], each token's row, counted through both.
    """

    first: PackedWeight
    second: PackedWeight
    places: Tensor

    kind: ClassVar[str] = "mixed"

    @classmethod
    def from_float(cls, weight: Tensor, frequent: Tensor, rotation: int = 0) -> Self:
        """A float table [N, K] with the rows ``frequent`` (distinct tokens) in INT8, the others in
        INT4, all rotated in blocks of at most ``rotation`` inputs; 0: not. Raises ValueError
        unless there are some of both."""
        others, places = _places(frequent, weight.shape[0])
        first = int8_of(weight[frequent], rotation=rotation)
        return cls(first, int4_of(weight[others], rotation=rotation), places)

    @classmethod
    def from_int8(cls, table: PackedInt8, frequent: Tensor, rotation: int = 0) -> Self:
        """The same of a table that is INT8, and not rotated."""
        others, places = _places(frequent, table.shape[0])
        values, scale = table.values(), table.scale
        first = int8_of(values[frequent], scale[frequent], rotation)
        return cls(first, int4_of(values[others], scale[others], rotation), places)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.places), self.first.shape[1]

    @property
    def rotation(self) -> int:
        """Inputs that are rotated together before they are rounded; 1: none."""
        return self.first.rotation

    @property
    def nbytes(self) -> int:
        """Bytes resident, scales and places included."""
        return self.first.nbytes + self.second.nbytes + self.places.nbytes

    def dequantize(self) -> Tensor:
        """The float32 table [N, K] that this one stands for."""
        return torch.cat([self.first.dequantize(), self.second.dequantize()])[self.places]


def int8_of(rows: Tensor, scale: Tensor | None = None, rotation: int = 0) -> PackedInt8:
    """Rows [N, K], floats or codes with their scales [N], in INT8; rotated as
    :meth:`PackedMixed.from_float` says."""
    return PackedInt8.from_codes(*_rounded(quantize_int8, rows, scale, rotation)).rotated(rotation)


def int4_of(rows: Tensor, scale: Tensor | None = None, rotation: int = 0) -> PackedInt4:
    """The same in INT4."""
    return PackedInt4.from_codes(*_rounded(quantize_int4, rows, scale, rotation)).rotated(rotation)


def _rounded(
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]],
    rows: Tensor,
    scale: Tensor | None,
    rotation: int,
) -> tuple[Tensor, Tensor]:
    parts = []
    for at in range(0, len(rows), BLOCK):
        block = rows[at : at + BLOCK].float()
        if scale is not None:
            block *= scale[at : at + BLOCK, None]
        parts.append(quantize(rotate(block, rotation)))
    codes, scales = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(scales)


def _places(frequent: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """The tokens that are not frequent, and each token's row where those come after the others."""
    rare = torch.ones(N, dtype=torch.bool)
    rare[frequent] = False
    others = rare.nonzero()[:, 0]
    if not 0 < len(others) < N or len(others) + len(frequent) != N:
        raise ValueError(
            f"{len(frequent)} frequent tokens of {N}; allowed: 1 to {N - 1} different ones"
        )
    places = torch.empty(N, dtype=torch.int32)
    places[torch.cat([frequent, others])] = torch.arange(N, dtype=torch.int32)
    return others, places
