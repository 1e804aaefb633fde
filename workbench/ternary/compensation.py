"""Ternary codes that make up for each other's errors: the start of a training from a checkpoint.

A weight rounded by itself errs by up to half a scale, and a row of them sums such errors up. But a
layer's inputs are not independent: what rounding one weight does to the output, the weights not
yet rounded can undo in part. Given the inputs' second moments H = sum x x^T on calibration text,
column after column is rounded and its error spread over the columns that follow, by the inverse
of H (optimal brain compression in the order of GPTQ, arXiv 2210.17323):

    e = (w_j - s t_j) / U_jj        w_k <- w_k - e U_jk  for all k after j,  U = chol(H^-1)^T

Columns come in the order of their inputs' strength, so that the last ones, which nothing can make
up for, matter least. The scale is that of least squares before; that of a row or a tensor is fitted
again to the codes under H after.

What comes out is no packed layer but *master weights* that ternarise to these codes and scales,
so that a training can go on from them: :func:`master_weights`.
"""

from __future__ import annotations

import torch
from ternary_kernels.quantizers import per_cell, spread
from torch import Tensor

from workbench.ternary.least_squares import least_squares
from workbench.ternary.threshold import Granularity, ThresholdVersion

DAMPING = 0.01
"""Of the mean second moment, added to each: keeps the inverse of few samples in bounds."""
BLOCK = 128
"""Columns that are corrected at once; within one, after each column."""
EDGE = 0.5
"""|w| / scale from which absmean's code is no longer 0."""
MARGIN = 1e-3
"""Of a scale: a master weight lies at least so far from its threshold."""


@torch.no_grad()
def compensated_codes(
    weight_NK: Tensor, moments_KK: Tensor, granularity: Granularity = "row"
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes whose errors make up for each other on inputs of these second moments.

    moments_KK: sum of x x^T over calibration tokens. Returns int8 codes [N, K], the float32 scale
    shaped as ``granularity`` says, and the weights [N, K] as they were when each was rounded.
    """
    w_NK = weight_NK.detach().float().clone()
    N, K = w_NK.shape
    H = moments_KK.double()
    silent = H.diagonal() == 0
    H = H + torch.diag(silent.double() + DAMPING * H.diagonal().mean())
    _, scale = least_squares(w_NK, granularity, H.diagonal().float())
    order = H.diagonal().argsort(descending=True)
    upper = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(H[order][:, order])), upper=True
    ).float()
    # Columns become rows: each is read and corrected as a whole.
    w_KN = w_NK[:, order].T.contiguous()
    scale_KN = spread(scale, K).expand(N, K)[:, order].T.contiguous()
    codes_KN = torch.empty_like(w_KN)
    for start in range(0, K, BLOCK):
        end = min(start + BLOCK, K)
        errors = torch.zeros(end - start, N, device=w_KN.device)
        for j in range(start, end):
            code = (w_KN[j] / scale_KN[j]).round_().clamp_(-1, 1)
            codes_KN[j] = code
            error = (w_KN[j] - code * scale_KN[j]) / upper[j, j]
            w_KN[j + 1 : end] -= upper[j, j + 1 : end, None] * error
            errors[j - start] = error
        w_KN[end:] -= upper[start:end, end:].T @ errors
    back = order.argsort()
    codes_NK, w_NK = (of[back].T.contiguous() for of in (codes_KN, w_KN))
    if granularity != "group128":
        scale = _refitted(weight_NK.float(), codes_NK, H.float(), scale)
    return codes_NK.to(torch.int8), scale, w_NK


def _refitted(w_NK: Tensor, codes_NK: Tensor, H_KK: Tensor, scale: Tensor) -> Tensor:
    """The scale of the tensor, or of each row, that errs least under H with these codes; the old
    one where the codes have none."""
    moved_NK = codes_NK @ H_KK
    square, product = (moved_NK * codes_NK).sum(1), (moved_NK * w_NK).sum(1)
    if len(scale) == 1:
        square, product = square.sum(0, keepdim=True), product.sum(0, keepdim=True)
    return torch.where((square > 0) & (product > 0), product / square.clamp(min=1e-30), scale)


@torch.no_grad()
def master_weights(
    codes_NK: Tensor, scale: Tensor, near_NK: Tensor, threshold: ThresholdVersion
) -> Tensor:
    """Weights [N, K] that absmean ternarises to these codes and this scale.

    near_NK: where each weight would lie, which decides how far it is from its threshold. Those of
    code 0 stay as near to their place as the threshold lets them; the excess of the others over
    it is stretched until the mean magnitude of each cell is its scale.
    """
    K = codes_NK.shape[1]
    place = near_NK / spread(scale, K)
    kept = codes_NK != 0
    inner = place.clamp(-EDGE + MARGIN, EDGE - MARGIN) * ~kept
    excess = ((place * codes_NK).clamp(min=EDGE + MARGIN) - EDGE) * kept

    def mean(x: Tensor) -> Tensor:
        return per_cell(x, threshold.granularity, lambda cell: cell.mean(-1))

    missing = 1.0 - EDGE * mean(kept.float()) - mean(inner.abs())
    factor = spread(missing / mean(excess).clamp(min=1e-12), K)
    outer = (EDGE + excess * factor) * codes_NK
    return (inner + outer) * spread(scale, K)
