"""The ternary codes and scale of least squares, for each tensor, row or group of weights.

For a row w with importances h (1, or the mean square of each input on calibration text) the
best t in {-1, 0, 1} and scale a minimise sum h (w - a t)^2. For any a the best t keeps the
weights with |w| > a/2 whatever h is, so the kept ones are always a prefix of the row sorted by
magnitude, and the best a for a kept set S is sum_S h|w| / sum_S h. Only K candidates remain,
and the one with the largest (sum_S h|w|)^2 / sum_S h is the optimum: exact, one sort a row,
where alternating between codes and scale can stop short of it.
"""

from __future__ import annotations

import torch
from ternary_kernels.quantizers import GROUP
from torch import Tensor

from workbench.ternary.threshold import Granularity


def least_squares(
    weight_NK: Tensor, granularity: Granularity, importance_K: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The codes (int8 [N, K] of -1, 0, 1) and scale that minimise the weighted squared error.

    importance_K: non-negative weight of each input; None means 1. Returns the scale as float32
    ``[1]``, ``[N]`` or ``[N, ceil(K/128)]``.
    """
    w = weight_NK.detach().float()
    N, K = w.shape
    h = torch.ones(K, device=w.device) if importance_K is None else importance_K.float()
    # An input that never fires in the calibration text must not make 0/0 of its weight.
    h = h.clamp(min=float(h.mean()) * 1e-6 + 1e-30)
    h_NK = h.expand(N, K)
    if granularity == "tensor":
        codes, scale = _best_prefix(w.reshape(1, -1), h_NK.reshape(1, -1))
        return codes.reshape(N, K), scale
    if granularity == "row":
        return _best_prefix(w, h_NK)
    parts = [_best_prefix(w[:, k : k + GROUP], h_NK[:, k : k + GROUP]) for k in range(0, K, GROUP)]
    return torch.cat([p[0] for p in parts], 1), torch.stack([p[1] for p in parts], 1)


def _best_prefix(w_CE: Tensor, h_CE: Tensor) -> tuple[Tensor, Tensor]:
    """Cells C of E elements each: codes int8 [C, E] and scale [C]."""
    magnitude, order = w_CE.abs().sort(dim=1, descending=True, stable=True)
    h_sorted = h_CE.gather(1, order).double()
    above = (h_sorted * magnitude).cumsum(1)
    weight = h_sorted.cumsum(1)
    best = (above.square() / weight).argmax(1, keepdim=True)
    scale = (above / weight).gather(1, best).float()
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    codes = torch.where(rank <= best, w_CE.sign(), torch.zeros((), device=w_CE.device))
    # A cell of zeros has scale 0, which no format takes; its codes are zero whatever the scale.
    return codes.to(torch.int8), scale.squeeze(1).clamp_(min=torch.finfo(torch.float32).tiny)
