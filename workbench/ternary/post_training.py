"""Ternary weights without training: the least-squares codes and scale of each row or group.

For a row w with importances h (1, or the mean square of each input on calibration text) the
best t in {-1, 0, 1} and scale a minimise sum h (w - a t)^2. For any a the best t keeps the
weights with |w| > a/2 whatever h is, so the kept ones are always a prefix of the row sorted by
magnitude, and the best a for a kept set S is sum_S h|w| / sum_S h. Only K candidates remain,
and the one with the largest (sum_S h|w|)^2 / sum_S h is the optimum: exact, one sort a row,
where alternating between codes and scale can stop short of it.

A model that was trained in full precision loses most of its quality this way. That is the
point of the arm: it answers whether training could be skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from ternary_kernels.quantizers import GROUP
from torch import Tensor, nn

from workbench.errors import ConfigError
from workbench.pilot.sections.model import Policy
from workbench.ternary.bitlinear import Activations
from workbench.ternary.convert import ConversionReport, body_parameters, not_ternary
from workbench.ternary.packed_layers import PackedTernaryLinear
from workbench.ternary.policy import require_ternary
from workbench.ternary.quantize import fake_quantize_activations
from workbench.ternary.threshold import Granularity, ThresholdVersion

CALIBRATION_SEQUENCES = 16
"""Training sequences that are enough to weigh the errors of the layers' inputs."""

Importance = dict[str, Tensor]


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


def ternarize_post_training(
    model: nn.Module,
    policy: Policy,
    *,
    granularity: Granularity = "row",
    activations: Activations = "int8",
    calibration: Iterable[Tensor] | None = None,
) -> ConversionReport:
    """Replace, in place, the layers that ``policy`` makes ternary by packed ones.

    calibration: batches of token ids [B, T]; with them an error counts by how strongly its
    input is used. Embeddings and INT8 layers are quantised when the model is packed
    (``save_packed(model, folder, report.precisions, report.threshold)``).

    Raises ConfigError when no layer would become ternary or a weight is not finite.
    """
    resolved = require_ternary(policy, model)
    names = resolved.named("ternary")
    importance = input_importance(model, names, calibration, activations) if calibration else {}
    threshold = ThresholdVersion("least_squares", granularity)
    body, others = body_parameters(model), not_ternary(model, names)
    changed = 0
    for name in names:
        layer = model.get_submodule(name)
        if not bool(layer.weight.isfinite().all()):
            raise ConfigError(
                f"{name}.weight holds values that are not finite",
                next_step="give a checkpoint whose training did not diverge",
            )
        codes, scale = least_squares(layer.weight, granularity, importance.get(name))
        packed = PackedTernaryLinear.from_values(
            codes,
            scale,
            activations=activations,
            bias=layer.bias,
            norm=getattr(layer, "norm", None),
        )
        model.set_submodule(name, packed, strict=True)
        changed += codes.numel()
    rest = sum(parameter.numel() for parameter in model.parameters())
    return ConversionReport(
        resolved.precisions,
        resolved.reasons,
        resolved.unmatched,
        threshold,
        changed,
        changed + rest,
        body,
        others,
    )


@torch.no_grad()
def input_importance(
    model: nn.Module,
    names: list[str],
    batches: Iterable[Tensor],
    activations: Activations = "int8",
) -> Importance:
    """The mean square of each input of each named layer over ``batches`` of ids [B, T]."""
    totals: Importance = {}
    with _observed(model, names, activations, totals), _evaluation(model):
        for ids in batches:
            model(ids)
    return totals


@contextmanager
def _observed(
    model: nn.Module, names: list[str], activations: Activations, totals: Importance
) -> Iterator[None]:
    def watch(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            if (norm := getattr(layer, "norm", None)) is not None:
                x = norm(x)
            if activations == "int8":
                x = fake_quantize_activations(x)
            square = x.float().square().flatten(0, -2).sum(0)
            totals[name] = totals[name] + square if name in totals else square

        return hook

    hooks = [model.get_submodule(n).register_forward_pre_hook(watch(n)) for n in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


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
