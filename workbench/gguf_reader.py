"""GGUF files: their fields, and their tensors as numbers or, where they are ternary, as codes.

The package ``gguf`` reads the fields and knows most block types. Read here are those it does not
have yet, and those whose codes must be kept as they are:

- TQ1_0 (34), TQ2_0 (35): 256 inputs, a float16 scale last.
- Q2_0 (42): 64 inputs, a float16 scale first, code w + 1 of input k at bits 2 (k % 4) of byte
  k // 4. Older files of a vendor carry the same number with 128 inputs, newer ones PQ2_0 (142);
  the bytes up to the next tensor tell which.
- I2_S (36, bitnet.cpp on x86): 128 values in 32 bytes, ``byte p = q[p] << 6 | q[32+p] << 4 |
  q[64+p] << 2 | q[96+p]``, q = w + 1, over the whole matrix; behind it 32 bytes that begin with the
  one float32 scale.
- Q4_0 (2): 32 inputs; ternary where every value is -d, 0 or +d, as ``workbench export`` writes it.

A file whose activations must be turned first (a Hadamard transform, as Bonsai 2 needs) would load
and answer gibberish; it is refused by its name.

Shape legend: N rows (outputs), K inputs, B inputs of a block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import ConfigError, reason_of

I2_S, Q2_0, PQ2_0, PTQ1_0 = 36, 42, 142, 143
OWN_NAMES = {I2_S: "I2_S", Q2_0: "Q2_0", PQ2_0: "PQ2_0", PTQ1_0: "PTQ1_0"}
TERNARY = {"TQ1_0": 256, "TQ2_0": 256, "Q2_0": 64, "PQ2_0": 128, "I2_S": 128, "PTQ1_0": 128}
"""Types that hold codes and nothing else -> inputs of a block."""
Q4_0_BLOCK, Q8_0_BLOCK = 32, 32
TURNED = re.compile(
    r"(?<![a-z])bonsai[\s_-]*(?:v|gen)?[\s_-]*2(?![0-9a-z])(?!\.?\d*\s*b\b)", re.IGNORECASE
)
"""Names of a generation whose weights were trained behind a transform of the activations."""

DAMAGED = (ValueError, IndexError, KeyError, OSError, OverflowError, TypeError, MemoryError)
"""What ``gguf`` and numpy raise for a file that is cut off or no GGUF file."""


def require_gguf() -> None:
    """ConfigError without the package that reads and writes the format."""
    if find_spec("gguf") is None:
        raise ConfigError(
            "GGUF files need the package gguf, which is not installed",
            next_step="pip install -c constraints.txt -e '.[export]'",
        )


def is_gguf(name: str) -> bool:
    """Whether a path is that of a GGUF file, by its ending; names of the Hub are none."""
    return name.lower().endswith(".gguf") and not name.startswith("hf:")


@dataclass(frozen=True)
class Blocks:
    """A ternary matrix. codes: int8 [N, K] of -1, 0, 1. scales: float32 [N, K/B], above 0."""

    codes: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class GgufTensor:
    """name: as in the file. shape: with the inputs last. data: uint8, up to the next tensor."""

    path: Path
    name: str
    type_id: int
    shape: tuple[int, ...]
    data: np.ndarray = field(repr=False)

    @property
    def type_name(self) -> str:
        """``TQ2_0``, ``F16``; a number where nobody here knows the type."""
        from gguf import GGMLQuantizationType

        if self.type_id in OWN_NAMES:
            return OWN_NAMES[self.type_id]
        try:
            return GGMLQuantizationType(self.type_id).name
        except ValueError:
            return f"type {self.type_id}"

    def values(self) -> np.ndarray:
        """float32 of :attr:`shape`. Raises ConfigError for a type that is not known."""
        if self.type_name in TERNARY:
            blocks = self.blocks()
            assert blocks is not None, "these types hold codes alone"
            each = self.shape[-1] // blocks.scales.shape[1]
            return blocks.codes.astype(np.float32) * np.repeat(blocks.scales, each, axis=1)
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            kind = GGMLQuantizationType(self.type_id)
            B, size = GGML_QUANT_SIZES[kind]
            raw = self._bytes(int(np.prod(self.shape)) // B * size)
            if kind.name in ("F32", "F16", "F64"):
                values = raw.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[kind.name])
            else:
                values = dequantize(raw.reshape(-1, self.shape[-1] // B * size), kind)
        except (ValueError, NotImplementedError, KeyError) as error:
            raise self._unreadable() from error
        return np.array(values, dtype=np.float32).reshape(self.shape)  # the file is read-only

    def blocks(self) -> Blocks | None:
        """The codes and scales of a ternary matrix; None for one that is not.

        Raises ConfigError for a forbidden code, a scale that is not finite, and where a type is
        not known.
        """
        kind = self.type_name
        if len(self.shape) != 2 or (kind not in TERNARY and kind != "Q4_0"):
            return None
        if kind == "PTQ1_0":
            raise self._unreadable()
        if kind == "I2_S":
            return self._i2_s()
        if kind in ("Q2_0", "PQ2_0"):
            return self._two_bits()
        return self._by_gguf(kind)

    def require_whole(self) -> None:
        """ConfigError where bytes are missing at the end; of an unknown type nobody can tell."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            B, size = GGML_QUANT_SIZES[GGMLQuantizationType(self.type_id)]
        except (ValueError, KeyError):
            return
        self._bytes(int(np.prod(self.shape)) // B * size)

    def int8_rows(self) -> tuple[np.ndarray, np.ndarray] | None:
        """int8 [N, K] and float32 scale [N] of Q8_0 whose blocks share their row's scale, as
        ``workbench export`` writes INT8; None for anything else."""
        if self.type_name != "Q8_0" or len(self.shape) != 2:
            return None
        N, K = self.shape
        count = K // Q8_0_BLOCK
        blocks = self._bytes(N * count * (2 + Q8_0_BLOCK)).reshape(N, count, -1)
        scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
        int8 = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(N, K)
        same = (scales == scales[:, :1]).all() and np.isfinite(scales).all() and (scales > 0).all()
        return (int8, scales[:, 0].copy()) if same and int8.min() >= -127 else None

    def _by_gguf(self, kind: str) -> Blocks | None:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        (N, K), B = self.shape, TERNARY.get(kind, Q4_0_BLOCK)
        size = {"TQ1_0": 54, "TQ2_0": 66, "Q4_0": 18}[kind]
        blocks = self._bytes(N * (K // B) * size).reshape(-1, size)
        scales = self._scales(blocks[:, :2] if kind == "Q4_0" else blocks[:, -2:])
        values = dequantize(blocks.reshape(N, -1), GGMLQuantizationType[kind]).reshape(-1, B)
        codes = np.divide(values, scales, out=np.zeros_like(values), where=scales != 0)
        if not np.isin(codes, (-1, 0, 1)).all():
            if kind == "Q4_0":
                return None
            raise self._wrong("holds a code that is not -1, 0 or +1")
        # Q4_0 has no sign of its own scale: -d with code -1 is d with code +1.
        return self._blocks(codes * np.sign(scales), np.abs(scales))

    def _two_bits(self) -> Blocks:
        K, count = self.shape[1], self.shape[0] * self.shape[1]
        wide = 34 * (count // 128)
        older = self.type_id == Q2_0 and K % 128 == 0 and len(self.data) < 18 * (count // 64)
        B, size = (128, 34) if older or self.type_id == PQ2_0 else (64, 18)
        raw = self._bytes(wide if B == 128 else 18 * (count // 64)).reshape(-1, size)
        packed = raw[:, 2:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3
        if (packed == 3).any():
            raise self._wrong("holds a code that is not -1, 0 or +1")
        codes = packed.reshape(-1, B).astype(np.int8) - 1
        return self._blocks(codes, self._scales(raw[:, :2]))

    def _i2_s(self) -> Blocks:
        N, K = self.shape
        if K % 128:
            raise self._wrong("has rows that are no whole number of 128 inputs")
        raw = self._bytes(N * K // 4 + 32)
        scale = raw[N * K // 4 :][:4].copy().view("<f4")
        packed = raw[: N * K // 4].reshape(-1, 1, 32)
        codes = packed >> np.array([6, 4, 2, 0], dtype=np.uint8)[:, None] & 3
        if (codes == 3).any():
            raise self._wrong("holds a code that is not -1, 0 or +1 (or was written on ARM)")
        if not (np.isfinite(scale).all() and scale[0] > 0):
            raise self._wrong("holds a scale that is not finite and above 0")
        scales = np.full(N * K // 128, scale[0], dtype=np.float32)
        return self._blocks(codes.reshape(-1, 128).astype(np.int8) - 1, scales[:, None])

    def _blocks(self, codes: np.ndarray, scales: np.ndarray) -> Blocks:
        """codes [blocks, B] and scales [blocks, 1] as the matrix's; a block of zeros with a scale
        of 0 gets the smallest."""
        N, K = self.shape
        above = np.where(scales > 0, scales, np.finfo(np.float32).tiny)
        whole = codes.reshape(N, K).astype(np.int8)
        return Blocks(whole, above.reshape(N, -1).astype(np.float32))

    def _scales(self, halves: np.ndarray) -> np.ndarray:
        scales = np.ascontiguousarray(halves).view("<f2").astype(np.float32)
        if not np.isfinite(scales).all():
            raise self._wrong("holds a scale that is not finite")
        return scales

    def _bytes(self, count: int) -> np.ndarray:
        if len(self.data) < count:
            raise self._wrong(
                f"has {len(self.data)} bytes of {count}: the file is cut off or damaged"
            )
        return self.data[:count]

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self.path}: {self.name} ({self.type_name}) {what}",
            next_step="the file is damaged or of another tool: copy or make it again",
        )

    def _unreadable(self) -> ConfigError:
        return ConfigError(
            f"{self.path}: {self.name} is {self.type_name}, which cannot be read here",
            allowed="F32, F16, BF16, TQ1_0, TQ2_0, Q2_0, I2_S and llama.cpp's usual types",
            next_step="give the model in one of those, or its Hugging Face folder",
        )


@dataclass(frozen=True)
class GgufFile:
    """tensors: by name, in the file's order."""

    path: Path
    tensors: dict[str, GgufTensor]
    _reader: Any = field(repr=False)

    def get(self, key: str, default: Any = None) -> Any:
        """A field's value: a number, a text or a list of them."""
        found = self._reader.fields.get(key)
        return default if found is None else found.contents()

    @cached_property
    def architecture(self) -> str:
        return str(self.get("general.architecture"))

    def shape(self, key: str, default: Any = None) -> Any:
        """A field of the architecture: ``block_count`` is ``llama.block_count``."""
        return self.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> Any:
        """:meth:`shape`, which must be there. Raises ConfigError."""
        value = self.shape(key)
        if value is None:
            raise ConfigError(
                f"{self.path} has no field {self.architecture}.{key}",
                next_step="the file is damaged or of an old converter: make it again",
            )
        return value

    def is_ternary(self) -> bool:
        """Whether matrices of its blocks are of a type that holds codes alone."""
        return any(
            tensor.type_name in TERNARY
            for name, tensor in self.tensors.items()
            if name.startswith("blk.")
        )

    def require_whole(self) -> None:
        """ConfigError where bytes are missing, before any number is read."""
        for tensor in self.tensors.values():
            tensor.require_whole()

    def refuse_turned(self) -> None:
        """ConfigError, by its name, for a file whose activations must be turned first."""
        declared = [key for key in self._reader.fields if "hadamard" in key.lower()]
        names = [self.get(f"general.{key}") for key in ("name", "basename", "finetune")]
        called = next((str(n) for n in names if n), self.path.name)
        named = [str(n) for n in (*names, self.path.stem) if n and TURNED.search(str(n))]
        if not (declared or named):
            return
        why = f"its field {declared[0]} says so" if declared else "its block types do not say so"
        raise ConfigError(
            f"{self.path} ({called}) needs a Hadamard transform of its activations ({why}), which "
            "is not computed here: without it the model answers gibberish",
            allowed="ternary models whose layers take their activations as they are, such as "
            "BitNet b1.58, Falcon-E and the first Bonsai series",
            next_step="give one of those, or measure it behind its own server (an address in "
            "measure_ab.arms)",
        )


def read_gguf(path: Path) -> GgufFile:
    """The file's fields and tensors; numbers are read when they are asked for.

    The latest files are kept: a vocabulary of 50,000 tokens takes seconds to read, and a run asks
    for it a dozen times. Raises ConfigError for what is no whole GGUF file, and without the
    package ``gguf``.
    """
    require_gguf()
    try:
        state = path.stat()
        return _read(path, state.st_mtime_ns, state.st_size)
    except DAMAGED as error:
        raise ConfigError(
            f"{path} cannot be read as a GGUF file: {reason_of(error)}",
            next_step="the file is cut off, damaged or of another format: copy it again",
        ) from error


@lru_cache(maxsize=2)
def _read(path: Path, modified_ns: int, size_bytes: int) -> GgufFile:
    """modified_ns, size_bytes: of the file, so that another one in its place is read anew."""
    import gguf

    class Reader(gguf.GGUFReader):
        """Keeps the tensors' places, also of types that the package does not know."""

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            self.places = []
            for each in fields:
                _, name, _, dims, kind, offset = each.parts
                shape = tuple(int(n) for n in reversed(dims))
                start = int(start_offs) + int(offset[0])
                self.places.append((str(bytes(name), "utf-8"), int(kind[0]), shape, start))

    reader = Reader(path)
    starts = sorted({start for *_, start in reader.places})
    ends = dict(zip(starts, [*starts[1:], len(reader.data)], strict=True))
    tensors = {
        name: GgufTensor(path, name, kind, shape, reader.data[start : ends[start]])
        for name, kind, shape, start in reader.places
    }
    return GgufFile(path, tensors, reader)
