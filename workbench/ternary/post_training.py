"""Ternary weights without training, each layer for itself: the codes and scales of least squares.

An error counts by how strongly its input is used on calibration text. A model that was trained
in full precision loses most of its quality this way; where layers make up for each other's errors
(:mod:`workbench.ternary.blockwise`) it keeps more. Both answer whether training could be skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from workbench.errors import ConfigError
from workbench.pilot.sections.model import Policy
from workbench.ternary.bitlinear import Activations
from workbench.ternary.convert import ConversionReport, body_parameters, not_ternary
from workbench.ternary.least_squares import least_squares
from workbench.ternary.packed_layers import PackedTernaryLinear
from workbench.ternary.policy import require_ternary
from workbench.ternary.quantize import fake_quantize_activations
from workbench.ternary.threshold import Granularity, ThresholdVersion

CALIBRATION_SEQUENCES = 16
"""Training sequences that are enough to weigh the errors of the layers' inputs."""

Importance = dict[str, Tensor]


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
    require_finite(model, names)
    changed = 0
    for name in names:
        layer = model.get_submodule(name)
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


def require_finite(model: nn.Module, names: Iterable[str]) -> None:
    """ConfigError that names the first of these layers whose weights are not all finite."""
    for name in names:
        if not bool(model.get_submodule(name).weight.isfinite().all()):
            raise ConfigError(
                f"{name}.weight holds values that are not finite",
                next_step="give a checkpoint whose training did not diverge",
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
