"""Ternary layers in the kernels' packing, packed where they will be multiplied.

A folder and a model hold codes; on a GPU they go there as they are, a quarter of a byte each from
a folder, and are packed there, one layer at a time. So no layer is packed by the host's
cores, and the host holds no packed copy.

device: a torch device that Triton's kernels pack on; None: the CPU's own packing.
"""

from __future__ import annotations

from ternary_kernels import PackedTernary
from torch import Tensor

from workbench.engine.architecture import refuse_rotation


def from_codes(
    codes: Tensor, scale: Tensor | float, device: str | None, rotation: int = 0
) -> PackedTernary:
    """From codes [N, K] of 0, 1, 2; see :meth:`ternary_kernels.PackedTernary.from_codes`.

    rotation: of the threshold that they were made under. Raises NotForKernels for one on a GPU."""
    if device is None:
        return PackedTernary.from_codes(codes.cpu(), scale).rotated(rotation)
    refuse_rotation(rotation)
    from ternary_kernels.gpu import pack_codes

    return pack_codes(codes.to(device), scale)


def from_portable(
    packed: Tensor, K: int, scale: Tensor | float, device: str | None, rotation: int = 0
) -> PackedTernary:
    """From the interchange form uint8 [N, ceil(K/4)]; see ``PackedTernary.from_portable``, and
    :func:`from_codes`."""
    if device is None:
        return PackedTernary.from_portable(packed.cpu(), K, scale).rotated(rotation)
    refuse_rotation(rotation)
    from ternary_kernels.gpu import pack_portable

    return pack_portable(packed.to(device), K, scale)
