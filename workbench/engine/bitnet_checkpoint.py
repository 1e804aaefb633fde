"""Checkpoints in Hugging Face's own BitNet format (``quant_method: bitnet``).

Packed: ``weight`` uint8 ``[out/4, in]``, code = w + 1, and with R = out/4 byte ``[r, c]`` holds
the rows r, r + R, r + 2R and r + 3R at bits 0, 2, 4 and 6. Two conventions share the name
``weight_scale``: ``bitlinear`` stores 1/absmean and divides by it, ``autobitlinear`` stores
absmean and multiplies. The class says which; the magnitude must agree, because a wrong choice
gives a model that runs and talks nonsense. Unpacked (online) weights are master weights, to be
quantised by absmean when they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ternary_kernels import PackedTernary
from torch import Tensor

from workbench.errors import StageError


@dataclass(frozen=True)
class BitnetCheckpoint:
    """divides: the stored scale is 1/absmean. high_precision: modules that stay as they are."""

    divides: bool
    high_precision: tuple[str, ...]

    @classmethod
    def of(cls, quantization: Any, folder: Path) -> BitnetCheckpoint | None:
        """From a model's ``quantization_config``; None for a model without one.

        Raises StageError for quantisation by any other method.
        """
        if quantization is None:
            return None
        fields = quantization if isinstance(quantization, dict) else quantization.to_dict()
        method = str(fields.get("quant_method"))
        linear_class = fields.get("linear_class") or "bitlinear"
        if method != "bitnet" or linear_class not in ("bitlinear", "autobitlinear"):
            raise StageError(
                f"{folder} is quantised with {method} ({linear_class})",
                allowed="no quantisation, or bitnet with bitlinear or autobitlinear",
                next_step="give the checkpoint in half precision",
            )
        if fields.get("use_rms_norm"):
            raise StageError(
                f"{folder} has a norm inside each BitLinear (use_rms_norm)",
                allowed="bitnet checkpoints without it",
                next_step="load it with transformers and use Engine.from_model",
            )
        excluded = fields.get("modules_to_not_convert") or ["lm_head"]
        return cls(linear_class == "bitlinear", tuple(excluded))

    def converts(self, module: str) -> bool:
        """Whether the module is ternary; embeddings never are."""
        parts = module.split(".")
        return parts[-1] != "embed_tokens" and not any(
            name == module or name in parts for name in self.high_precision
        )

    def pack(self, module: str, weight: Tensor, weight_scale: Tensor | None) -> PackedTernary:
        """Raises ValueError for a scale that cannot be what the class says."""
        if weight.dtype != torch.uint8:
            return PackedTernary.from_float(weight)
        return PackedTernary.from_codes(self.codes(weight), self.scale(module, weight_scale))

    def codes(self, weight: Tensor) -> Tensor:
        """Packed ``weight`` uint8 ``[out/4, in]`` -> its codes uint8 ``[out, in]``, w + 1."""
        return torch.cat([(weight >> shift) & 3 for shift in (0, 2, 4, 6)])

    def scale(self, module: str, weight_scale: Tensor | None) -> Tensor:
        """What the codes are multiplied with, float32 ``[1]``, of the stored ``weight_scale``.

        Raises ValueError for one that is missing, or cannot be what the class says.
        """
        if weight_scale is None:
            raise ValueError(f"{module} has packed codes and no weight_scale")
        scale = weight_scale.float().reshape(-1)
        scale = 1.0 / scale if self.divides else scale
        # Weights of a trained model are far below 1 on average; a scale read the wrong way
        # round comes out far above.
        if not 0 < float(scale.min()) <= float(scale.max()) < 5:
            rule = "divides by" if self.divides else "multiplies with"
            raise ValueError(
                f"weight_scale {weight_scale.tolist()} cannot be right where the layer {rule} it; "
                "allowed: a mean magnitude of weights below 5. Check linear_class in config.json."
            )
        return scale
