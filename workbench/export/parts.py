"""What a model consists of, for whoever writes it to a file: matrices once, and vectors."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.errors import ConfigError
from workbench.ternary.packed_layers import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    PackedTernaryLinear,
)

MatrixModule = (
    PackedTernaryLinear | Int8Linear | Int4Linear | Int8Embedding | nn.Linear | nn.Embedding
)
_STATE = ("weight", "codes", "int8", "int4", "scale")


def matrices(model: PreTrainedModel) -> dict[str, MatrixModule]:
    """Linear layers and embeddings by name; of those that share one matrix, the first."""
    found: dict[str, MatrixModule] = {}
    seen: set[int] = set()
    for name, module in _all(model).items():
        if id(own := _values(module)) not in seen:
            seen.add(id(own))
            found[name] = module
    return found


def vectors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Norms and biases by name, float32."""
    inside = {f"{name}.{key}" for name in _all(model) for key in _STATE}
    return {
        name: value.detach().float().clone()
        for name, value in model.state_dict().items()
        if name not in inside
    }


def dense(module: MatrixModule) -> Tensor:
    """The matrix [N, K] that the module stands for."""
    return module.dequantize() if hasattr(module, "dequantize") else module.weight.detach()


def norm_inside(model: PreTrainedModel) -> str | None:
    """A layer with a norm of its own input (``model.sub_norm``), which no other tool expects."""
    return next((n for n, m in _all(model).items() if getattr(m, "norm", None) is not None), None)


def refuse_rotation(model: PreTrainedModel, where: str) -> None:
    """ConfigError for a model with rotated ternary layers, whose file (``where``) could not say so:
    its reader would leave the activations as they are, and print gibberish."""
    turned = (n for n, m in _all(model).items() if getattr(m, "rotation", 0))
    if name := next(turned, None):
        raise ConfigError(
            f"{where}: {name} needs its input rotated (model.threshold.rotation), which this "
            "format cannot say",
            allowed="ternary layers without a rotation",
            next_step="workbench serve runs the folder as it is; or train with "
            "--set model.threshold.rotation=none",
        )


def _all(model: PreTrainedModel) -> dict[str, MatrixModule]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, MatrixModule)
    }


def _values(module: MatrixModule) -> Tensor:
    return next(
        getattr(module, k) for k in ("codes", "int8", "int4", "weight") if hasattr(module, k)
    )
