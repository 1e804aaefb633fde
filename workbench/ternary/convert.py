"""A Hugging Face model's linear layers made ternary in place, and back.

Works on any ``transformers`` causal model whose products are ``nn.Linear``: the layers keep
their names, their parameters (ties and optimizers included) and their place, so that the
model's own code, generation and checkpoints go on working. What could not be converted is in
the report with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from workbench.pilot.sections.model import Policy
from workbench.ternary.bitlinear import Activations, BitLinear, precise_twin
from workbench.ternary.policy import Precision, require_ternary
from workbench.ternary.threshold import ThresholdVersion

AnyModel = TypeVar("AnyModel", bound=nn.Module)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    precisions: module name -> what the policy makes of it. INT8 takes effect when the model is
    packed; until then such a module is as it was.
    reasons: module name -> why it is not what a pattern asked for. unmatched: patterns without
    a module. ternary_parameters, parameters: weights, shared ones counted once.
    """

    precisions: dict[str, Precision]
    reasons: dict[str, str]
    unmatched: list[str]
    threshold: ThresholdVersion
    ternary_parameters: int
    parameters: int

    def named(self, precision: Precision) -> list[str]:
        return [name for name, its in self.precisions.items() if its == precision]

    def __str__(self) -> str:
        share = self.ternary_parameters / max(1, self.parameters)
        lines = [
            f"{len(self.named('ternary'))} layers ternary ({share:.0%} of the parameters, "
            f"{self.threshold}), {len(self.named('int8'))} INT8 when packed, "
            f"{len(self.named('high_precision'))} in high precision"
        ]
        lines += [f"  {name}: {reason}" for name, reason in self.reasons.items()]
        lines += [f"  no module matches {pattern}" for pattern in self.unmatched]
        return "\n".join(lines)


def to_ternary(
    model: nn.Module,
    policy: Policy,
    threshold: ThresholdVersion,
    activations: Activations = "int8",
    sub_norm: bool = False,
) -> ConversionReport:
    """Replace the layers that ``policy`` makes ternary by :class:`BitLinear`, at strength 1.

    Raises ConfigError, before anything is replaced, when no layer would become ternary and for one
    that is too wide for every kernel.
    """
    resolved = require_ternary(policy, model)
    names = resolved.named("ternary")
    for name in names:
        linear = model.get_submodule(name)
        model.set_submodule(
            name, BitLinear.from_linear(linear, threshold, activations, sub_norm), strict=True
        )
    return ConversionReport(
        resolved.precisions,
        resolved.reasons,
        resolved.unmatched,
        threshold,
        sum(layer.weight.numel() for _, layer in bit_linears(model)),
        sum(parameter.numel() for parameter in model.parameters()),
    )


def to_full_precision(model: AnyModel) -> AnyModel:
    """The inverse of :func:`to_ternary`, in place: plain linear layers with the master weights.

    A layer with an RMSNorm inside keeps it (``NormedLinear``): without it the network
    would be another one.
    """
    for name, layer in bit_linears(model):
        model.set_submodule(name, precise_twin(layer), strict=True)
    return model


def bit_linears(model: nn.Module) -> list[tuple[str, BitLinear]]:
    """The ternary layers by name, in the model's order."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, BitLinear)]


def set_strength(model: nn.Module, strength: float) -> None:
    """Set lambda (0: precise, 1: ternary) of every ternary layer; a model without is left."""
    for _, layer in bit_linears(model):
        layer.strength = strength


def set_reuse(model: nn.Module, reuse: bool) -> None:
    """Keep quantised weights between the micro-batches of a step; see :class:`BitLinear`.

    Whoever switches it on calls :func:`forget_quantised` after every optimizer step.
    """
    for _, layer in bit_linears(model):
        layer.reuse = reuse
        layer.forget()


def forget_quantised(model: nn.Module) -> None:
    """The master weights have changed: quantise them anew at the next forward pass.

    Frozen ones have not.
    """
    for _, layer in bit_linears(model):
        if layer.weight.requires_grad:
            layer.forget()
