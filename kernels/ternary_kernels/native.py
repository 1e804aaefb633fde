"""The native library's C interface (csrc/abi.h) in ctypes, and its life: build, load, force.

Importing this module starts nothing. :func:`library` builds and loads on first use and returns
``None`` where that fails, having said why once; everything else asks it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_uint64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from .mixed import PackedMixed
from .weights import PackedWeight

log = logging.getLogger("ternary_kernels")

_lock = threading.Lock()
_loaded: _Loaded | None = None


@dataclass(frozen=True)
class Backend:
    """Which code computes: for the run's record.

    ``name`` 'native' or 'torch'; ``isa`` the instruction set ('' for torch); ``reason`` why the
    native library is not used ('' if it is); ``threads`` of the native team or of torch.
    ``tile_rows``: a tile unit multiplies batches of so many rows or more (0: there is none);
    ``no_tiles``: why the processor's is not used although it has one ('' where it is).
    """

    name: str
    isa: str
    reason: str
    threads: int
    tile_rows: int = 0
    no_tiles: str = ""

    @property
    def vectors(self) -> str:
        """The vectors' instruction set: what computes all but large batches of products."""
        return {"amx": "avx512vbmi", "tile_model": "plain"}.get(self.isa, self.isa)

    def unit(self, weight: PackedWeight) -> str:
        """What multiplies large batches with ``weight``: 'amx_int8', 'amx_bf16' or 'vectors'."""
        if not self.tile_rows or weight.tiles.dtype == torch.float16:
            return "vectors"
        return f"{self.isa}_{'bf16' if weight.kind == 'half' else 'int8'}"


class LayoutError(RuntimeError):
    """The library's structs lie in memory otherwise than this module writes them."""


@dataclass
class _Loaded:
    lib: ctypes.CDLL | None
    reason: str


class Weight(ctypes.Structure):
    """tk::Weight."""

    _fields_ = (
        ("kind", c_int32),
        ("N", c_int32),
        ("K", c_int32),
        ("scaling", c_int32),
        ("tiles", c_void_p),
        ("scales", c_void_p),
        ("hadamard", c_int32),
    )


class PackedTable(ctypes.Structure):
    """tk::Table."""

    _fields_ = (("first", Weight), ("second", Weight), ("places", c_void_p))


class Layer(ctypes.Structure):
    """TkLayer."""

    _fields_ = (
        ("linears", Weight * 7),
        ("biases", c_void_p * 7),
        ("attn_norm", c_void_p),
        ("ffn_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("attn_sub_norm", c_void_p),
        ("ffn_sub_norm", c_void_p),
    )


class Llama(ctypes.Structure):
    """TkLlama."""

    _fields_ = (
        *((name, c_int32) for name in ("hidden", "inter", "layers", "heads", "kv_heads")),
        *((name, c_int32) for name in ("head_dim", "vocab", "slots", "context", "kv_type")),
        *((name, c_int32) for name in ("gate_mode", "window")),
        ("eps", c_float),
        ("rope_scaling", c_float),
        ("inv_freq", c_void_p),
        ("embed", PackedTable),
        ("head", PackedTable),
        ("norm", c_void_p),
        ("layer", POINTER(Layer)),
    )


_MIRRORS = {"Weight": Weight, "Table": PackedTable, "TkLayer": Layer, "TkLlama": Llama}
"""The library's name of a struct -> its mirror here."""

_KINDS = {"ternary": 0, "ternary5": 1, "int8": 2, "int4": 5, "ternary3": 6}
_SCALINGS = {"none": 0, "row": 0, "group128": 1, "tensor": 2, "group32": 3}
MODES = {"silu": 2, "relu2": 3}

_SIGNATURES: dict[str, tuple] = {
    "tk_layout": (c_char_p,),
    "tk_isa": (c_char_p,),
    "tk_available_isas": (c_char_p, c_int),
    "tk_tile_unit_refused": (c_char_p,),
    "tk_unit_rows": (c_int,),
    "tk_force_isa": (c_int, c_char_p),
    "tk_set_threads": (None, c_int),
    "tk_threads": (c_int,),
    "tk_quantize": (
        *(c_int, c_void_p, c_int, c_int, c_void_p, c_float, c_int, c_void_p, c_void_p),
    ),
    "tk_linear_int": (None, POINTER(Weight), c_void_p, c_int, c_void_p),
    "tk_linears": (c_int, c_void_p, c_int, c_void_p, c_int, c_void_p, c_float, c_void_p, c_void_p),
    "tk_gated": (
        *(c_int, POINTER(Weight), POINTER(Weight), c_void_p, c_int, c_void_p, c_float),
        *(c_void_p, c_void_p, c_int, c_void_p),
    ),
    "tk_llama_create": (c_void_p, POINTER(Llama)),
    "tk_llama_free": (None, c_void_p),
    "tk_llama_kv_bytes": (c_uint64, c_void_p),
    "tk_llama_forward": (
        *(c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_void_p),
    ),
    "tk_read_all": (c_uint64, c_void_p, c_uint64),
    "tk_dot_peak": (c_uint64, c_uint64),
}


def library() -> ctypes.CDLL | None:
    """The loaded library, or None where pure torch must do (announced once, with the reason)."""
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _load()
    return _loaded.lib


def backend() -> Backend:
    """What computes in this process."""
    lib = library()
    if lib is None:
        return Backend("torch", "", _loaded.reason, torch.get_num_threads())
    return Backend(
        "native", lib.tk_isa().decode(), "", lib.tk_threads(),
        lib.tk_unit_rows(), lib.tk_tile_unit_refused().decode(),
    )  # fmt: skip


def available_isas() -> list[str]:
    """Instruction sets that this machine can run, best first; empty without the library."""
    lib = library()
    names: list[str] = []
    while lib is not None and (name := lib.tk_available_isas(len(names))):
        names.append(name.decode())
    return names


def force_isa(name: str) -> None:
    """Compute with this instruction set from now on (tests, comparisons)."""
    lib = library()
    if lib is None or lib.tk_force_isa(name.encode()):
        raise ValueError(
            f"instruction set {name!r} is not available; allowed here: "
            f"{', '.join(available_isas()) or 'none (no native library)'}"
        )


def set_threads(threads: int) -> None:
    """Size of the native thread team (and of torch's, where torch computes)."""
    if threads < 1:
        raise ValueError(f"threads = {threads}; allowed: at least 1")
    lib = library()
    if lib is None:
        torch.set_num_threads(threads)
    else:
        lib.tk_set_threads(threads)


def weight_struct(weight: PackedWeight) -> Weight:
    """A view of the packed weight for C; the weight must outlive it."""
    if weight.kind == "half":
        kind = 3 if weight.tiles.dtype == torch.bfloat16 else 4
    else:
        kind = _KINDS[weight.kind]
    scales = 0 if weight.row_scales is None else weight.row_scales.data_ptr()
    scaling = _SCALINGS[weight.granularity]
    tiles = weight.tiles.data_ptr()
    return Weight(kind, *weight.shape, scaling, tiles, scales, weight.rotation)


def table_struct(table: PackedWeight | PackedMixed) -> PackedTable:
    """A view of an embedding or a head for C; the table must outlive it."""
    if isinstance(table, PackedWeight):
        return PackedTable(weight_struct(table), Weight(), None)
    first, second = weight_struct(table.first), weight_struct(table.second)
    return PackedTable(first, second, table.places.data_ptr())


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor's data; None for no tensor."""
    return None if tensor is None else tensor.data_ptr()


def layout() -> str:
    """The mirrors in the form of csrc/layout.cpp: "Weight.tiles 16 8" is a field with its offset
    and size in bytes, "Weight 32" the size of a struct; one line each."""
    lines = []
    for name, mirror in _MIRRORS.items():
        fields = [field for field, *_ in mirror._fields_]
        places = [(field, getattr(mirror, field)) for field in fields]
        lines += [f"{name}.{field} {place.offset} {place.size}" for field, place in places]
        lines.append(f"{name} {ctypes.sizeof(mirror)}")
    return "\n".join(lines) + "\n"


def check_layout(of_library: str) -> None:
    """Raise LayoutError unless every field lies where the library reads it, and all are known."""
    theirs, ours = of_library.splitlines(), layout().splitlines()
    different = [line for line in ours if line not in theirs]
    different += [f"{line} (the library)" for line in theirs if line not in ours]
    if different:
        raise LayoutError(
            "structs of the native library and of native.py differ (name, offset, size): "
            f"{', '.join(different[:6])}; allowed: equal. Make csrc/abi.h, csrc/layout.cpp and "
            "native.py agree; where TERNARY_KERNELS_LIBRARY names a library, unset it."
        )


def _load() -> _Loaded:
    # Here, so that `python -m ternary_kernels.build` does not find itself imported already.
    from . import build

    wanted = os.environ.get("TERNARY_KERNELS_BACKEND", "")
    if wanted == "torch":
        return _without("TERNARY_KERNELS_BACKEND=torch")
    if wanted not in ("", "native"):
        raise ValueError(f"TERNARY_KERNELS_BACKEND={wanted!r}; allowed: 'native', 'torch'")
    try:
        lib = ctypes.CDLL(os.environ.get("TERNARY_KERNELS_LIBRARY") or str(build.build()))
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (build.BuildError, OSError, AttributeError) as error:
        return _without(str(error))
    check_layout(lib.tk_layout().decode())
    isa = os.environ.get("TERNARY_KERNELS_ISA", "")
    if isa and lib.tk_force_isa(isa.encode()):
        raise ValueError(
            f"TERNARY_KERNELS_ISA={isa!r} is not available on this machine; unset it, or name one "
            "of amx, avx512vbmi, avx512vnni, avxvnni, avx2, neon, plain that the processor has"
        )
    lib.tk_set_threads(torch.get_num_threads())
    return _Loaded(lib, "")


def _without(reason: str) -> _Loaded:
    log.warning("native kernels are not used, PyTorch computes instead: %s", reason)
    return _Loaded(None, reason)
