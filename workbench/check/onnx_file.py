"""Evidence of ONNX files: the whole numbers that their ``MatMulNBits`` matrices stand for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.check.evidence import Matrix, TernaryCheck, scale_problem, sha256
from workbench.errors import ConfigError
from workbench.ternary.nbits import NBitsMatrix, read_matrices
from workbench.ternary.policy import Precision

if TYPE_CHECKING:
    from onnx import ModelProto


def check_onnx(path: Path) -> TernaryCheck:
    """Raises ConfigError without the package ``onnx``."""
    if find_spec("onnx") is None:
        raise ConfigError(
            "ONNX files need the package onnx, which is not installed",
            next_step="pip install -c constraints.txt -e '.[onnx]'",
        )
    import onnx
    from google.protobuf.message import DecodeError

    check = TernaryCheck(path, "ONNX file", stored="codes and scales of MatMulNBits")
    beside = path.with_name(path.name + ".data")
    for file in (path, beside):
        if file.exists():
            check.digests[file.name] = sha256(file)
    try:
        model = onnx.load(path)
        for name, matrix in read_matrices(model):
            _add(check, name, matrix)
    except ConfigError as error:
        check.problems.append(error.got)
        return check
    except (DecodeError, OSError, ValueError) as error:
        check.problems.append(f"the file is cut off or damaged: {error}")
        return check
    _add_the_rest(check, model)
    if not check.problems and not check.ternary:
        check.problems.append("no matrix in the file is ternary")
    return check


def _add(check: TernaryCheck, name: str, matrix: NBitsMatrix) -> None:
    values = matrix.values()
    scale = torch.from_numpy(np.array(matrix.scale))
    if problem := scale_problem(f"{name} (scales)", scale):
        check.problems.append(problem)
    elif np.abs(values).max() <= 1:
        check.matrices.append(Matrix.ternary(name, torch.from_numpy(values), scale))
    elif matrix.bits == 2:
        check.problems.append(f"{name} (2 bits) holds a code that is not -1, 0 or +1")
    else:
        precision: Precision = "int8" if matrix.bits == 8 else "high_precision"
        check.matrices.append(Matrix(name, precision, matrix.shape))


def _add_the_rest(check: TernaryCheck, model: ModelProto) -> None:
    """Matrices of floats: they are named by their tensors."""
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    for tensor in model.graph.initializer:
        is_matrix = len(tensor.dims) == 2 and tensor.data_type in floats
        if is_matrix and not tensor.name.endswith(".scales"):
            shape = int(tensor.dims[0]), int(tensor.dims[1])
            check.matrices.append(Matrix(tensor.name, "high_precision", shape))
