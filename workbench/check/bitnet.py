"""Evidence of Hugging Face's BitNet folders (``quant_method: bitnet``).

Which layers must be ternary, and their shapes, come from config.json; the codes and scales are
read from the files. The format is in :mod:`workbench.engine.bitnet_checkpoint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.check.evidence import Matrix, TernaryCheck, not_finite, sha256
from workbench.engine.bitnet_checkpoint import BitnetCheckpoint
from workbench.errors import WorkbenchError, reason_of
from workbench.ternary.manifest import read_json_object
from workbench.ternary.quantize import ternarize
from workbench.ternary.threshold import ThresholdVersion

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
ONLINE = ThresholdVersion()
"""How transformers makes unpacked weights ternary when it uses them: by the mean magnitude."""


def check_bitnet(folder: Path, bitnet: BitnetCheckpoint) -> TernaryCheck:
    """``bitnet``: what the folder's config.json says of its quantisation."""
    check = TernaryCheck(folder, "Hugging Face BitNet folder")
    try:
        wanted = _wanted(folder)
        tensors = _Files(folder, check)
        shapes = {name: shape for name, shape in wanted.items() if bitnet.converts(name)}
        lacking = sorted(f"{name}.weight" for name in wanted if f"{name}.weight" not in tensors)
        check.problems += [f"{name} is missing" for name in lacking]
        for name, shape in wanted.items():
            if f"{name}.weight" in lacking:
                continue
            weight = tensors.read(f"{name}.weight")
            if name not in shapes:
                check.problems += filter(None, [not_finite(f"{name}.weight", weight)])
                check.matrices.append(Matrix(name, "high_precision", shape))
            elif matrix := _matrix(name, shape, weight, tensors, bitnet, check):
                check.matrices.append(matrix)
    except (OSError, SafetensorError) as error:
        check.problems.append(f"{WEIGHTS} cannot be read: {reason_of(error)}")
    except WorkbenchError as error:
        check.problems.append(error.got)
    if not check.problems and not check.ternary:
        check.problems.append("config.json leaves no layer ternary")
    return check


class _Files:
    """The tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path, check: TernaryCheck) -> None:
        index = folder / INDEX
        names = {WEIGHTS}
        if index.exists():
            names = set(map(str, read_json_object(index).get("weight_map", {}).values()))
        self._of: dict[str, Any] = {}
        for name in sorted(names):
            file = safe_open(folder / name, framework="pt")
            self._of |= dict.fromkeys(file.keys(), file)
            check.digests[name] = sha256(folder / name)

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def read(self, name: str) -> Tensor:
        return self._of[name].get_tensor(name)


def _wanted(folder: Path) -> dict[str, tuple[int, int]]:
    """Name and shape [N, K] of each matrix of the model that config.json describes."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WorkbenchError(f"config.json cannot be used: {reason_of(error)}") from error
    tied_head = model.get_output_embeddings() if config.tie_word_embeddings else None
    return {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and module is not tied_head
    }


def _matrix(
    name: str,
    shape: tuple[int, int],
    weight: Tensor,
    tensors: _Files,
    bitnet: BitnetCheckpoint,
    check: TernaryCheck,
) -> Matrix | None:
    """A layer that must be ternary; None, and a problem, where it is not."""
    N, K = shape
    packed = weight.dtype == torch.uint8
    like = (N // 4, K) if packed else shape
    if tuple(weight.shape) != like:
        check.problems.append(f"{name}.weight is {list(weight.shape)}, not {list(like)}")
        return None
    if not packed:
        check.stored, check.threshold = "unpacked weights, made ternary when used", ONLINE.id
        if problem := not_finite(f"{name}.weight", weight):
            check.problems.append(problem)
            return None
        return Matrix.ternary(name, *ternarize(weight, ONLINE))
    scale = f"{name}.weight_scale"
    codes_NK = bitnet.codes(weight)
    if bool((codes_NK == 3).any()):
        check.problems.append(f"{name}.weight holds the forbidden code 3")
        return None
    try:
        found = bitnet.scale(name, tensors.read(scale) if scale in tensors else None)
    except ValueError as error:
        check.problems.append(f"{name}: {error}")
        return None
    return Matrix.ternary(name, codes_NK.char() - 1, found)
