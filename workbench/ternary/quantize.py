"""The training's quantisers: every rule of a threshold version, and their gradients.

The arithmetic that the kernels share stands in :mod:`ternary_kernels.quantizers`.

Shape legend: N outputs, K inputs, G = ceil(K/128) groups, C cells. A *scale* has the shape of
its threshold's granularity: ``[1]`` (tensor), ``[N]`` (row) or ``[N, G]`` (group of 128; the
last group is shorter when K is no multiple of 128).

All arithmetic is float32 whatever the weights' dtype, and in the order that BitNet's public
code uses (multiply by the reciprocal, divide by it again), so a checkpoint gives the same codes
here and there. Activations always round half to even: that is what every kernel does.
"""

from __future__ import annotations

import math

import torch
from ternary_kernels.quantizers import (
    GROUP,
    absmean,
    activation_codes,
    per_cell,
    rotate,
    round_to,
    spread,
    ternary_codes,
)
from torch import Tensor

from workbench.ternary.threshold import ThresholdVersion

LEARNED_LEVELS = 1.5
LEARNED_CLIP = 0.99


def ternarize(
    weight_NK: Tensor, threshold: ThresholdVersion, alpha: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and scale of a weight matrix: weight is approximated by codes * scale, the rotated
    weight where the threshold has a rotation.

    alpha: the trained parameter of rule ``learned``, shaped like a scale.
    Returns int8 [N, K] of -1, 0, 1 and the float32 scale.
    """
    codes, scale = _codes_and_scale(rotated_weight(weight_NK, threshold), threshold, alpha)
    return codes.to(torch.int8), scale


def quantize_weight(
    weight_NK: Tensor, threshold: ThresholdVersion, alpha: Tensor | None = None
) -> Tensor:
    """codes * scale in the weight's dtype, without a gradient; see :func:`ternarize`."""
    codes, scale = _codes_and_scale(rotated_weight(weight_NK, threshold), threshold, alpha)
    return codes.mul_(spread(scale, weight_NK.shape[1])).to(weight_NK.dtype)


def rotated_weight(weight_NK: Tensor, threshold: ThresholdVersion) -> Tensor:
    """The float32 matrix that codes are made of, without a gradient: the weight, its inputs turned
    where the threshold has a rotation."""
    return rotate(weight_NK.detach().float(), threshold.rotates)


def learned_weight(weight_NK: Tensor, alpha: Tensor, threshold: ThresholdVersion) -> Tensor:
    """codes * alpha/1.5 with gradients for the weight and for alpha (LSQ, scaled 1/sqrt(cell)).

    weight_NK: as codes are made of it, so rotated where the threshold has a rotation.

    A weight beyond the clip range passes no gradient to itself; alpha receives code - w/alpha
    inside the range and the code outside.
    """
    cell = weight_NK.numel() // alpha.numel()
    gradient_scale = 1.0 / math.sqrt(max(1, cell))
    alpha = alpha.float().clamp(min=threshold.eps)
    alpha = (alpha * gradient_scale) + (alpha * (1.0 - gradient_scale)).detach()
    alpha = spread(alpha, weight_NK.shape[1])
    ratio = (weight_NK.float() / alpha).clamp(-LEARNED_CLIP, LEARNED_CLIP)
    level = round_to(ratio.detach() * LEARNED_LEVELS, threshold.rounding) / LEARNED_LEVELS
    return ((ratio + (level - ratio).detach()) * alpha).to(weight_NK.dtype)


def starting_alpha(weight_NK: Tensor, threshold: ThresholdVersion) -> Tensor:
    """Where rule ``learned`` starts: max |w| of each cell."""
    magnitude = rotated_weight(weight_NK, threshold).abs()
    return per_cell(magnitude, threshold.granularity, lambda x: x.amax(-1)).clamp_(
        min=threshold.eps
    )


def scale_shape(out_features: int, in_features: int, granularity: str) -> tuple[int, ...]:
    """The shape of the scale of a layer; see the legend."""
    return {
        "tensor": (1,),
        "row": (out_features,),
        "group128": (out_features, -(-in_features // GROUP)),
    }[granularity]


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token INT8 values (as float32) [..., K] and their factor [..., 1]: x = values / factor.

    factor = 127 / max(|x|, 1e-5); see :func:`ternary_kernels.quantizers.activation_codes`.
    """
    values, absmax = activation_codes(x)
    return values, 127.0 / absmax


def fake_quantize_activations(x: Tensor, strength: Tensor | None = None) -> Tensor:
    """x after INT8 and back, in x's dtype, with the gradient passed straight through.

    strength: zero-dimensional, 0..1; x + strength * (quantised - x). None means 1.
    """
    with torch.no_grad():
        values, factor = quantize_activations(x.detach())
        values.div_(factor)
        if strength is not None:
            values = torch.lerp(x.detach().float(), values, strength)
    return straight_through(x, values.to(x.dtype))


def shared_fake_quantize(
    x: Tensor, strength: Tensor | None, level: float, rotation: int = 0
) -> Tensor:
    """:func:`fake_quantize_activations` of the rotated ``x``, made once for all layers that read
    the same tensor.

    q, k and v are given one tensor, gate and up another, so of a block's seven quantisations
    and copies for the backward pass four remain. The result stays with ``x`` itself and goes
    with it; an ``x`` that was written to, another strength (``level`` is its value) or another
    gradient mode makes a new one.
    """
    if torch.compiler.is_compiling() or x.is_inference():  # neither has a version to trust
        return fake_quantize_activations(rotate(x, rotation), strength)
    state = (x._version, level, torch.is_grad_enabled(), rotation)
    kept = getattr(x, "_int8_form", None)
    if kept is None or kept[0] != state:
        kept = (state, fake_quantize_activations(rotate(x, rotation), strength))
        x._int8_form = kept  # type: ignore[attr-defined]
    return kept[1]


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """``value`` going forward, the identity to ``x`` going back.

    Unlike x + (value - x).detach() the result is ``value`` exactly, with no temporary.
    """
    return _StraightThrough.apply(x, value)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def turned_through(x: Tensor, value: Tensor, rotation: int) -> Tensor:
    """``value``, which stands for the rotated ``x``, going forward; going back, its gradient turned
    to what it is of ``x`` itself."""
    return _TurnedThrough.apply(x, value, rotation) if rotation else straight_through(x, value)


class _TurnedThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, value: Tensor, rotation: int) -> Tensor:
        ctx.rotation, ctx.dtype = rotation, x.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return rotate(gradient, ctx.rotation).to(ctx.dtype), None, None


def threshold_in_scales(
    weight_NK: Tensor, threshold: ThresholdVersion, scale: Tensor
) -> Tensor | float:
    """|weight| / scale from which on a code is no longer 0, shaped to broadcast against [N, K].

    weight_NK: the rotated one, see :func:`rotated_weight`."""
    if threshold.rule != "twn":
        return 0.5
    mean = per_cell(weight_NK.detach().float().abs(), threshold.granularity, lambda x: x.mean(-1))
    return spread(threshold.ratio * mean / scale, weight_NK.shape[1])


def _codes_and_scale(
    w_NK: Tensor, threshold: ThresholdVersion, alpha: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes as float32 [N, K] (a fresh tensor) and the scale."""
    rule = threshold.rule
    if rule == "least_squares":
        raise ValueError("rule least_squares is for post-training only: use post_training")
    if rule == "twn":
        return _twn(w_NK, threshold)
    if rule == "absmean":
        return absmean(w_NK, threshold.granularity, threshold.rounding, threshold.eps)
    if rule == "learned":
        if alpha is None:
            raise ValueError("rule learned needs the trained alpha of the layer")
        inverse = LEARNED_LEVELS / alpha.detach().float().clamp(min=threshold.eps)
    else:
        # The lower median, as torch gives it.
        median = per_cell(w_NK.abs(), threshold.granularity, lambda x: x.median(-1).values)
        inverse = 1.0 / median.clamp_(min=threshold.eps)
    return ternary_codes(w_NK, inverse, threshold.rounding), 1.0 / inverse


def _twn(w_NK: Tensor, threshold: ThresholdVersion) -> tuple[Tensor, Tensor]:
    K, granularity = w_NK.shape[1], threshold.granularity
    magnitude = w_NK.abs()
    mean = per_cell(magnitude, granularity, lambda x: x.mean(-1))
    above = (magnitude > spread(mean * threshold.ratio, K)).float()
    total = per_cell(magnitude * above, granularity, lambda x: x.sum(-1))
    count = per_cell(above, granularity, lambda x: x.sum(-1))
    scale = (total / count.clamp_(min=1.0)).clamp_(min=threshold.eps)
    return above.mul_(w_NK.sign()), scale
