"""The operators stand up to torch's own checks, in eager mode and compiled."""

from __future__ import annotations

import pytest
import ternary_kernels as tk
import torch
from ternary_kernels import library


@pytest.mark.parametrize("kind", list(library.PACKINGS))
@pytest.mark.parametrize("bias", [False, True])
def test_packed_linear_replaces_a_linear(kind, bias):
    layer = torch.nn.Linear(100, 37, bias=bias)
    packed = library.PackedLinear.from_linear(layer, kind)
    x = torch.randn(2, 3, 100)
    weight = library.PACKINGS[kind].from_float(layer.weight)
    assert torch.equal(packed(x), tk.linear(x, weight, layer.bias))
    assert packed(x.to(torch.bfloat16)).dtype == torch.bfloat16
    again = library.PackedLinear(
        library.PACKINGS[kind].from_float(torch.randn(37, 100)), layer.bias
    )
    if kind != "half":
        again.load_state_dict(packed.state_dict())
        assert torch.equal(again(x), packed(x))


def test_operators_pass_opcheck():
    weight = tk.PackedTernary.from_float(torch.randn(20, 33), "row")
    for x in (torch.randn(4, 33), torch.randn(2, 1, 33)):
        torch.library.opcheck(
            torch.ops.ternary_kernels.linear_ternary.default,
            (x, weight.tiles, weight.scale, 20, torch.randn(20)),
        )


def test_operators_trace_with_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = library.PackedLinear.from_linear(torch.nn.Linear(64, 48), "int8")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.empty(5, 64)).shape == (5, 48)


def test_compiled_equals_eager():
    model = torch.nn.Sequential(
        library.PackedLinear.from_linear(torch.nn.Linear(64, 48)),
        torch.nn.ReLU(),
        library.PackedLinear.from_linear(torch.nn.Linear(48, 5), "half"),
    )
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 64)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


def test_unknown_packing_is_refused():
    with pytest.raises(ValueError, match="allowed: ternary, ternary5, int8, half"):
        library.PackedLinear.from_linear(torch.nn.Linear(4, 4), "fp4")
