"""A Hugging Face model's linear layers made ternary in place, and back.

Works on any ``transformers`` causal model whose products are ``nn.Linear``: the layers keep
their names, their parameters (ties and optimizers included) and their place, so that the
model's own code, generation and checkpoints go on working. What could not be converted is in
the report with its reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from workbench.pilot.sections.model import Policy
from workbench.ternary.bitlinear import Activations, BitLinear, precise_twin
from workbench.ternary.policy import Precision, require_ternary
from workbench.ternary.threshold import ThresholdVersion
from workbench.wording.counts import number_of

AnyModel = TypeVar("AnyModel", bound=nn.Module)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    precisions: module name -> what the policy makes of it. INT8 takes effect when the model is
    packed; until then such a module is as it was.
    reasons: module name -> why it is not what a pattern asked for. unmatched: patterns without
    a module. ternary_parameters, parameters: weights, shared ones counted once; body_parameters:
    those outside the embedding and the head. not_ternary: where in the body the others lie, by
    name with ``*`` for a block's number, the most first, and how many they are.
    """

    precisions: dict[str, Precision]
    reasons: dict[str, str]
    unmatched: list[str]
    threshold: ThresholdVersion
    ternary_parameters: int
    parameters: int
    body_parameters: int
    not_ternary: dict[str, int]

    def named(self, precision: Precision) -> list[str]:
        return [name for name, its in self.precisions.items() if its == precision]

    @property
    def ternary_share(self) -> float:
        """Of the body's parameters, how many are ternary: 0 to 1."""
        return self.ternary_parameters / max(1, self.body_parameters)

    def __str__(self) -> str:
        share = self.ternary_parameters / max(1, self.parameters)
        lines = [
            f"{number_of(len(self.named('ternary')), 'layer')} ternary ({share:.0%} of the "
            f"parameters, {self.threshold}), {len(self.named('int8'))} INT8 when packed, "
            f"{len(self.named('high_precision'))} in high precision"
        ]
        lines += [f"  {name}: {reason}" for name, reason in self.reasons.items()]
        lines += [f"  no module matches {pattern}" for pattern in self.unmatched]
        return "\n".join(lines)


def to_ternary(
    model: nn.Module,
    policy: Policy | None = None,
    threshold: ThresholdVersion | None = None,
    activations: Activations = "int8",
    sub_norm: bool = False,
) -> ConversionReport:
    """Replace, in place, the layers that ``policy`` makes ternary by :class:`BitLinear`.

    model: any ``transformers`` causal model; its linear layers [out, in] keep their names and
    their parameters, which stay full-precision master weights. They are at strength 1: the forward
    pass sees -1, 0 and +1 times a scale at once. policy: None for a pilot's default (all linear
    layers but the head). threshold: None for absmean, one scale a tensor. activations: ``int8``
    rounds what a ternary layer takes to INT8, per token. sub_norm: an RMSNorm before each.

    Returns what became of each layer. Raises ConfigError, before anything is replaced, when no
    layer would become ternary and for one that is too wide for every kernel.

    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import to_ternary
    >>> model = AutoModelForCausalLM.from_config(LlamaConfig(
    ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...     vocab_size=50))
    >>> report = to_ternary(model)
    >>> len(report.named("ternary")), report.ternary_parameters, str(report.threshold)
    (7, 10240, 'absmean/tensor/half_even/eps1e-5')
    >>> codes, scale = model.model.layers[0].mlp.up_proj.ternarized()
    >>> tuple(codes.shape), sorted(set(codes.flatten().tolist())), tuple(scale.shape)
    ((64, 32), [-1, 0, 1], (1,))
    """
    policy, threshold = policy or Policy(), threshold or ThresholdVersion()
    resolved = require_ternary(policy, model)
    names = resolved.named("ternary")
    body = body_parameters(model)
    rest = not_ternary(model, names)
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear), "the policy makes nothing else ternary"
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
        body,
        rest,
    )


def body_parameters(model: nn.Module) -> int:
    """Parameters outside the embedding and the head, shared ones counted once."""
    return sum(parameter.numel() for parameter in _body(model).values())


def not_ternary(model: nn.Module, ternary: list[str]) -> dict[str, int]:
    """Matrices of the body that no layer of ``ternary`` has, see :class:`ConversionReport`."""
    within = {f"{name}.weight" for name in ternary}
    found: dict[str, int] = {}
    for name, parameter in _body(model).items():
        if parameter.ndim >= 2 and name not in within:
            place = re.sub(r"\.\d+(?=\.|$)", ".*", name.removesuffix(".weight"))
            found[place] = found.get(place, 0) + parameter.numel()
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _body(model: nn.Module) -> dict[str, nn.Parameter]:
    tables = (
        getattr(model, getter, lambda: None)()
        for getter in ("get_input_embeddings", "get_output_embeddings")
    )
    outside = {id(p) for table in tables if table is not None for p in table.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in outside}


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
