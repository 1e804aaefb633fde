"""Evidence of GGUF files: each block's values against its own scale.

llama.cpp's types TQ1_0 and TQ2_0 hold ternary blocks and nothing else. A Q4_0 matrix counts as
ternary where every value is -d, 0 or +d, which is how ``workbench export`` writes widths that the
TQ types cannot hold. I2_S is bitnet.cpp's own type; Q2_0, new in llama.cpp of 2026, is not known to
the ``gguf`` package yet.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.check.evidence import Matrix, TernaryCheck, sha256
from workbench.errors import ConfigError, reason_of
from workbench.ternary import i2_s

TERNARY_TYPES = ("TQ1_0", "TQ2_0")
BLOCK = {"TQ1_0": 256, "TQ2_0": 256, "Q4_0": 32}
"""Inputs of a block, by type; its scale d is float16, first in Q4_0 and last in the TQ types."""


def check_gguf(path: Path) -> TernaryCheck:
    """Raises ConfigError without the package ``gguf``, and for a file with types it cannot read."""
    if find_spec("gguf") is None:
        raise ConfigError(
            "GGUF files need the package gguf, which is not installed",
            next_step="pip install -c constraints.txt -e '.[export]'",
        )
    check = TernaryCheck(path, "GGUF file")
    check.digests[path.name] = sha256(path)
    try:
        reader = _reader(path)
        for tensor in reader.tensors:
            if len(tensor.shape) == 2:
                _add(check, tensor)
        for name, (N, K), data in reader.i2_s:
            _add_i2_s(check, name, data, N, K)
    except ValueError as error:
        if "GGMLQuantizationType" in str(error):
            raise ConfigError(
                f"{path}: {reason_of(error)}",
                allowed="block types that the installed package gguf knows",
                next_step="write the file with --type tq2_0, or check the folder it came from",
            ) from error
        check.problems.append(f"the file is cut off or damaged: {reason_of(error)}")
    except (IndexError, KeyError, OSError, UnicodeDecodeError, OverflowError) as error:
        check.problems.append(f"the file is cut off or damaged: {reason_of(error)}")
    if not check.problems and not check.ternary:
        check.problems.append("no matrix in the file is ternary")
    return check


def _reader(path: Path) -> Any:
    """gguf's, which sets bitnet.cpp's tensors apart: i2_s has (name, (N, K), bytes) of each."""
    import gguf

    class Reader(gguf.GGUFReader):
        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            known, self.i2_s = [], []
            for field in fields:
                _, name, _, dims, kind, offset = field.parts
                if kind[0] != i2_s.TYPE:
                    known.append(field)
                    continue
                K, N = map(int, dims)
                begin = int(start_offs + offset[0])
                data = self.data[begin : begin + N * K // 4 + i2_s.TAIL]
                self.i2_s.append((bytes(name).decode(), (N, K), data))
            super()._build_tensors(start_offs, known)

    return Reader(path)


def _add_i2_s(check: TernaryCheck, name: str, data: np.ndarray, N: int, K: int) -> None:
    codes, scale = i2_s.unpack_i2_s(data, N, K)
    if (codes == 3).any():
        check.problems.append(f"{name} (I2_S) holds a code that is not -1, 0 or +1")
    elif not (np.isfinite(scale) and scale > 0):
        check.problems.append(f"{name} (I2_S) holds a scale that is not finite and above 0")
    else:
        values = torch.from_numpy(codes.astype(np.int8) - 1)
        check.matrices.append(Matrix.ternary(name, values, torch.tensor([scale])))


def _add(check: TernaryCheck, tensor: Any) -> None:
    import gguf

    kind, (K, N) = tensor.tensor_type.name, map(int, tensor.shape)
    if kind not in BLOCK:
        check.matrices.append(
            Matrix(tensor.name, "int8" if kind == "Q8_0" else "high_precision", (N, K))
        )
        return
    blocks = tensor.data.reshape(N * K // BLOCK[kind], -1)
    d = np.ascontiguousarray(blocks[:, :2] if kind == "Q4_0" else blocks[:, -2:]).view("<f2")
    scales = d.astype(np.float32)[:, 0]
    if not np.isfinite(scales).all():
        check.problems.append(f"{tensor.name} holds a scale that is not finite")
        return
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(len(blocks), -1)
    by = scales[:, None]
    codes = np.divide(values, by, out=np.zeros_like(values), where=by != 0)
    if not np.isin(codes, (-1, 0, 1)).all():
        if kind in TERNARY_TYPES:
            check.problems.append(f"{tensor.name} ({kind}) holds a code that is not -1, 0 or +1")
        else:
            check.matrices.append(Matrix(tensor.name, "high_precision", (N, K)))
        return
    # Q4_0 has no sign of its own scale: -d with code -1 is d with code +1.
    codes, scales = codes * np.sign(by), np.abs(scales)
    if kind in TERNARY_TYPES and not (scales > 0).all():
        check.problems.append(f"{tensor.name} ({kind}) holds a scale of 0")
        return
    check.matrices.append(
        Matrix.ternary(
            tensor.name,
            torch.from_numpy(codes.reshape(N, K)),
            torch.from_numpy(scales[scales > 0] if (scales > 0).any() else scales),
        )
    )
