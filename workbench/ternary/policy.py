"""Which layer gets which precision: patterns over the names of a model's modules.

The lists are read from the most precise to the coarsest (``high_precision``, ``int8``,
``ternary``), the first with a matching pattern decides, and what matches nothing stays in high
precision: an exception always wins over the rule it is an exception to.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from ternary_kernels.reference import MAX_K
from torch import nn

from workbench.errors import ConfigError
from workbench.pilot.sections.model import Policy
from workbench.wording.counts import number_of

Precision = Literal["ternary", "int8", "int4", "high_precision"]
"""``int4``: of the arm that is made without training, and of a plan that lists it; no policy asks
for it."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PLANNED: tuple[Precision, ...] = ("ternary", "int4", "int8", "high_precision")
"""What a plan may make of a layer, the coarsest first."""
_ORDER: tuple[Precision, ...] = ("high_precision", "int8", "ternary")


@dataclass(frozen=True)
class Resolved:
    """precisions: module name -> precision, for every linear layer and embedding.
    reasons: why a module did not get what a pattern asked, or is outside the policy's reach.
    unmatched: patterns of the pilot's own (``ternary: *.proj``) that name no module here."""

    precisions: dict[str, Precision]
    reasons: dict[str, str]
    unmatched: list[str]

    def named(self, precision: Precision) -> list[str]:
        return [name for name, its in self.precisions.items() if its == precision]


def resolve(policy: Policy, model: nn.Module) -> Resolved:
    """Apply ``policy`` to the linear layers and embeddings of ``model``.

    An embedding, and a layer that shares its weight with one, cannot be ternary: its reason
    says so. Tied modules get one precision, the more precise of the two.
    """
    patterns = {kind: getattr(policy, kind) for kind in _ORDER}
    precisions: dict[str, Precision] = {}
    reasons: dict[str, str] = {}
    modules = dict(weight_modules(model))
    for name, module in modules.items():
        precision: Precision = next(
            (kind for kind in _ORDER if any(fnmatchcase(name, p) for p in patterns[kind])),
            "high_precision",
        )
        if precision == "ternary" and isinstance(module, nn.Embedding):
            precision, reasons[name] = "high_precision", "an embedding looks rows up, no product"
        precisions[name] = precision
    for group in tied_groups(model):
        together = min((precisions[name] for name in group), key=_ORDER.index)
        for name in group:
            if precisions[name] != together:
                others = ", ".join(n for n in group if n != name)
                reasons[name] = f"shares its weight with {others}, which is {together}"
                precisions[name] = together
    for name, kind in _other_weights(model):
        reasons[name] = f"a {kind}, not a linear layer"
    usual = Policy()
    unmatched = [
        f"{kind}: {pattern}"
        for kind in _ORDER
        for pattern in patterns[kind]
        if not any(fnmatchcase(name, pattern) for name in modules)
        and pattern not in getattr(usual, kind)  # those name the layers of several architectures
    ]
    return Resolved(precisions, reasons, unmatched)


def require_ternary(policy: Policy, model: nn.Module) -> Resolved:
    """The resolved policy, which makes at least one layer ternary; else ConfigError with what
    its patterns name instead, and what they could name. A model on the meta device will do."""
    resolved = resolve(policy, model)
    for name in resolved.named("ternary"):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), "resolve makes nothing else ternary"
        require_width(name, layer)
    if resolved.named("ternary"):
        return resolved
    matched = [n for n in resolved.reasons if any(fnmatchcase(n, p) for p in policy.ternary)]
    others = [name for name, _ in _other_weights(model)]
    instead = [f"{name}: {resolved.reasons[name]}" for name in (matched or others)[:3]]
    linears = resolve(Policy(ternary=["*"], int8=[]), model).named("ternary")
    if linears:
        allowed = f"patterns that match linear layers, e.g. {', '.join(linears[:3])}"
        cure = "change model.policy.ternary"
    else:
        allowed = "linear layers (nn.Linear), and this model has none; others cannot be converted"
        cure = "give a checkpoint of another architecture, e.g. Llama, Qwen or Mistral"
    raise ConfigError(
        "; ".join([f"model.policy makes no layer ternary: patterns {policy.ternary}", *instead]),
        allowed=allowed,
        next_step=cure,
    )


def require_width(name: str, layer: nn.Linear) -> None:
    """ConfigError for a layer whose sums of INT8 products no kernel can hold."""
    if layer.in_features > MAX_K:
        raise ConfigError(
            f"{name} takes {number_of(layer.in_features, 'input')}",
            allowed=f"at most {MAX_K} in a ternary, INT8 or INT4 layer: the kernels sum in 32 bits",
            next_step="name it in model.policy.high_precision",
        )


def weight_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The linear layers and embeddings of ``model``, by name, in the model's order."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)]


def tied_groups(model: nn.Module) -> list[list[str]]:
    """Names of the modules that share one weight, two or more to a group."""
    groups: dict[int, list[str]] = {}
    for name, module in weight_modules(model):
        groups.setdefault(id(module.weight), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _other_weights(model: nn.Module) -> list[tuple[str, str]]:
    """Modules with a weight matrix of their own that no precision is offered for."""
    return [
        (name, type(module).__name__)
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear | nn.Embedding)
        and any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))
    ]
