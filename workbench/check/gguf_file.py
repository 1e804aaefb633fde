"""Evidence of GGUF files: each block's values against its own scale.

The types TQ1_0, TQ2_0, Q2_0 and I2_S hold ternary blocks and nothing else. A Q4_0 matrix counts as
ternary where every value is -d, 0 or +d, which is how ``workbench export`` writes widths that the
TQ types cannot hold. The formats are in :mod:`workbench.gguf_reader`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from workbench.check.evidence import Matrix, TernaryCheck, sha256
from workbench.errors import ConfigError
from workbench.gguf_reader import GgufTensor, read_gguf, require_gguf
from workbench.ternary.policy import Precision


def check_gguf(path: Path) -> TernaryCheck:
    """Raises ConfigError without the package ``gguf``."""
    require_gguf()
    check = TernaryCheck(path, "GGUF file")
    check.digests[path.name] = sha256(path)
    try:
        for tensor in read_gguf(path).tensors.values():
            if len(tensor.shape) == 2:
                _add(check, tensor)
    except ConfigError as error:
        check.problems.append(f"the file is cut off or damaged: {error.got}")
    if not check.problems and not check.ternary:
        check.problems.append("no matrix in the file is ternary")
    return check


def _add(check: TernaryCheck, tensor: GgufTensor) -> None:
    try:
        blocks = tensor.blocks()
        tensor.require_whole()
    except ConfigError as error:
        check.problems.append(error.got.removeprefix(f"{tensor.path}: "))
        return
    if blocks is None:
        precision: Precision = "int8" if tensor.type_name == "Q8_0" else "high_precision"
        N, K = tensor.shape
        check.matrices.append(Matrix(tensor.name, precision, (N, K)))
        return
    kept = blocks.scales > np.finfo(np.float32).tiny  # of a block of zeros there is none
    scales = blocks.scales[kept] if kept.any() else blocks.scales
    if not kept.all() and tensor.type_name != "Q4_0":
        check.problems.append(f"{tensor.name} ({tensor.type_name}) holds a scale of 0")
        return
    codes, scale = torch.from_numpy(blocks.codes), torch.from_numpy(np.ascontiguousarray(scales))
    check.matrices.append(Matrix.ternary(tensor.name, codes, scale))
