"""A linear layer with high-precision master weights and a ternary forward pass.

    y = Q8(norm(x)) @ Q3(W)^T + bias

The optimizer updates W in high precision; the forward pass sees the ternary Q3(W) and per-token
INT8 activations Q8(x); both pass their gradient straight through. ``strength`` (lambda, 0 to 1)
blends from the precise layer to the quantised one, w = x + lambda * (q(x) - x), so that a
threshold can be switched on gradually. The bias is added after the scale, never scaled.

With a rotation H in the threshold it is y = Q3(W H) Q8(H norm(x))^T + bias. The master weights stay
in the model's own basis, so whatever reads them reads what it always did; the gradient of Q3(W H)
is turned back. At strength 0 nothing is turned.

Cost: quantising W is one pass over the weights, which matters when a step has many small
forward passes. The result is therefore kept, but only where nothing can change W unseen:
between two switches of train()/eval() in evaluation, and in training only on request
(``reuse``), for the micro-batches of one optimizer step. PyTorch's version counter alone would
not do: writes through ``.data`` and by FSDP do not count. The activations cost more passes than
the weights; layers that read the same tensor share them. Nothing here waits for the device.

On a CUDA device a layer at strength 1 runs on fused kernels where they know its threshold
version (:mod:`workbench.ternary.fused`); what is kept then is the packed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.ternary import fused
from workbench.ternary.quantize import (
    learned_weight,
    quantize_weight,
    rotate,
    rotated_weight,
    scale_shape,
    shared_fake_quantize,
    starting_alpha,
    ternarize,
    turned_through,
)
from workbench.ternary.threshold import ThresholdVersion

Activations = Literal["int8", "none"]
NORM_EPS = 1e-5


class _Kept(NamedTuple):
    version: int
    pointer: int
    strength: float
    inference: bool
    dtype: torch.dtype | None
    value: Tensor | tuple[Tensor, Tensor]


class NormedLinear(nn.Linear):
    """A linear layer with an optional RMSNorm of its input (``norm``, None for none)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sub_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.norm = (
            nn.RMSNorm(in_features, eps=NORM_EPS, device=device, dtype=dtype) if sub_norm else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x if self.norm is None else self.norm(x), self.weight, self.bias)

    def take(self, linear: nn.Linear) -> None:
        """Use the parameters of ``linear`` themselves, so that ties and optimizers stay."""
        self.weight, self.bias = linear.weight, linear.bias
        if self.norm is not None and (norm := getattr(linear, "norm", None)) is not None:
            self.norm = norm
        self.train(linear.training)


class BitLinear(NormedLinear):
    """x [..., K] -> y [..., N]; see the module's text.

    weight: master weights [N, K]. alpha: trained scale of rule ``learned``, shaped like a scale,
    else None; it stays zero until the first training step under the threshold, and starts then
    from the weights that the warm-up has left. strength: see :attr:`strength`.
    reuse: keep the quantised weights between forward passes in training; whoever sets it calls
    :meth:`forget` after each optimizer step. int8_gradients: on the fused path, gradient products
    in INT8 too (see :mod:`ternary_kernels.gpu.qat`).
    """

    _lambda: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        threshold: ThresholdVersion,
        activations: Activations = "int8",
        sub_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features, out_features, bias, sub_norm=sub_norm, device=device, dtype=dtype
        )
        self.threshold, self.activations, self.reuse = threshold, activations, False
        self.int8_gradients = False
        shape = scale_shape(out_features, in_features, threshold.granularity)
        self.alpha = (
            nn.Parameter(torch.zeros(shape, device=device)) if threshold.rule == "learned" else None
        )
        # A tensor, so that a compiled forward pass does not compile anew for each value.
        self.register_buffer("_lambda", torch.ones((), device=device), persistent=False)
        self._strength = 1.0
        self._blend: Literal["off", "ramp", "on"] = "on"
        self._kept: _Kept | None = None
        self._alpha_started = False
        self._choose_path()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        threshold: ThresholdVersion,
        activations: Activations = "int8",
        sub_norm: bool = False,
    ) -> BitLinear:
        """A ternary layer over the very parameters of ``linear``, at strength 1."""
        weight = linear.weight
        with torch.device("meta"):  # the parameters come from ``linear``: allocate none
            layer = cls(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                threshold=threshold,
                activations=activations,
            )
        if sub_norm:
            layer.norm = nn.RMSNorm(
                linear.in_features, eps=NORM_EPS, device=weight.device, dtype=weight.dtype
            )
        layer._lambda = torch.ones((), device=weight.device)
        layer.take(linear)
        if layer.alpha is not None:
            layer.alpha = nn.Parameter(torch.zeros(layer.alpha.shape, device=weight.device))
        layer._choose_path()
        return layer

    @property
    def strength(self) -> float:
        """0: the precise layer. 1: ternary weights and quantised activations."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"strength {value}; allowed: 0 to 1")
        self._strength = float(value)
        self._blend = "off" if value == 0.0 else "on" if value == 1.0 else "ramp"
        self._lambda.fill_(value)

    def forward(self, x: Tensor) -> Tensor:
        if self._fuses and self._blend == "on":
            return fused.forward(self, x, self._keep(self._pack), NORM_EPS)
        if self.norm is not None:
            x = self.norm(x)
        if self._blend == "off":
            return F.linear(x, self.weight, self.bias)
        turns = self.threshold.rotates
        if self.activations == "int8":
            strength = self._lambda if self._blend == "ramp" else None
            x = shared_fake_quantize(x, strength, self._strength, turns)
        else:
            x = rotate(x, turns)
        return F.linear(x, self.effective_weight(), self.bias)

    def effective_weight(self) -> Tensor:
        """The weights [N, K] that the forward pass uses at the present strength: above 0 those of
        the rotated input, where the threshold has a rotation."""
        if self._blend == "off":
            return self.weight
        if self.alpha is not None:
            alpha = self._alpha_now()
            assert alpha is not None
            weight = rotate(self.weight, self.threshold.rotates)
            quantised = learned_weight(weight, alpha, self.threshold)
            if self._blend == "ramp":
                quantised = torch.lerp(weight, quantised, self._lambda.to(quantised.dtype))
            return quantised
        if self._fuses and self._blend == "on":  # what is kept is packed
            value = self._quantise()
        else:
            value = self._keep(self._quantise)
        return turned_through(self.weight, value, self.threshold.rotates)

    @torch.no_grad()
    def ternarized(self, weight_NK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """int8 codes [N, K] of -1, 0, 1 and the float32 scale, at full strength.

        weight_NK: the whole master weight, where the layer itself holds a shard of it.
        """
        weight_NK = self.weight if weight_NK is None else weight_NK
        return ternarize(weight_NK, self.threshold, self._alpha_now())

    def forget(self) -> None:
        """Drop the kept quantised weights: the master weights change now."""
        self._kept = None

    def train(self, mode: bool = True) -> BitLinear:
        # transformers.Trainer calls train() before every micro-batch: that is no switch.
        if not (mode and self.training and self.reuse):
            self._kept = None
        return super().train(mode)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, threshold={self.threshold}, activations={self.activations}"
            f", strength={self._strength:g}"
        )

    def _apply(self, function, recurse: bool = True) -> BitLinear:
        super()._apply(function, recurse)
        self._choose_path()
        return self

    def _choose_path(self) -> None:
        """Whether strength 1 runs on fused kernels, where the weights lie now."""
        self._fuses, self._kept = fused.layer_reason(self) is None, None

    @torch.no_grad()
    def _keep(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, or gave before where nothing can have changed since."""
        if torch.compiler.is_compiling() or not (self.reuse or not self.training):
            return make()
        weight = self.weight
        # What was made in inference mode cannot take part in a backward pass.
        inference = torch.is_inference_mode_enabled()
        dtype = _autocast_dtype(weight)
        state = (weight._version, weight.data_ptr(), self._strength, inference, dtype)
        if self._kept is None or self._kept[:5] != state:
            self._kept = _Kept(*state, make())
        return self._kept.value

    def _pack(self) -> tuple[Tensor, Tensor]:
        return fused.pack(self)

    def _quantise(self) -> Tensor:
        quantised = quantize_weight(self.weight, self.threshold)
        if self._blend == "ramp":
            weight = rotated_weight(self.weight, self.threshold).to(quantised.dtype)
            quantised = torch.lerp(weight, quantised, self._lambda.to(quantised.dtype))
        # Autocast would round it at every use: rounded once, half the bytes are kept.
        dtype = _autocast_dtype(self.weight)
        return quantised if dtype is None else quantised.to(dtype)

    def _alpha_now(self) -> Tensor | None:
        if self.alpha is None or self._alpha_started:
            return self.alpha
        start = starting_alpha(self.weight, self.threshold)
        if not self.training:
            return start
        with torch.no_grad():
            self.alpha.copy_(start)
        self._alpha_started = True
        return self.alpha

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.alpha is not None and f"{prefix}alpha" in state_dict:
            self._alpha_started = bool(state_dict[f"{prefix}alpha"].any())


def _autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """The type that autocast multiplies in, where it is on."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def precise_twin(layer: nn.Linear) -> nn.Linear:
    """A plain (or normed) linear layer over the very parameters of ``layer``."""
    norm = getattr(layer, "norm", None)
    kind = nn.Linear if norm is None else NormedLinear
    twin = kind(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    twin.weight, twin.bias = layer.weight, layer.bias
    if norm is not None:
        twin.norm = norm
    return twin.train(layer.training)
