"""How large the gradient of each tensor is, without waiting for the device.

The norms stay one small tensor on the device until someone looks: at an evaluation, or when the
training breaks and the tensors at fault must be named. They are taken before clipping, after
which a single NaN has reached every tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench.train.whole import whole
from workbench.wording.counts import number_of

NAMED = 3
"""Tensors that an error names; the rest are counted."""


@dataclass(frozen=True)
class GradientNorms:
    """norms[i] is the Euclidean norm of the gradient of ``names[i]``, on the model's device."""

    names: list[str]
    norms: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: torch.nn.Module) -> GradientNorms:
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        norms = [whole(torch.linalg.vector_norm(gradient)) for gradient in found.values()]
        return cls(list(found), torch.stack(norms))

    def by_name(self) -> dict[str, float]:
        """All of them, in one transfer."""
        return dict(zip(self.names, self.norms.tolist(), strict=True))

    def not_finite(self) -> str:
        """The tensors whose gradient is not finite, as an error says it; empty for none."""
        bad = self.norms.isfinite().logical_not().tolist()
        names = [name for name, is_bad in zip(self.names, bad, strict=True) if is_bad]
        if not names:
            return ""
        rest = ", ..." if len(names) > NAMED else ""
        return (
            f"{len(names)} of {number_of(len(self.names), 'gradient')} are not finite: "
            f"{', '.join(names[:NAMED])}{rest}"
        )
