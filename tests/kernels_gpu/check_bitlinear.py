"""The workbench's ternary layer on the fused kernels against its plain path. See check_products."""

import pytest
import torch
from ternary_kernels.gpu import layout, pack_weights
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, bit_linears, to_ternary
from workbench.ternary.bitlinear import BitLinear
from workbench.ternary.fused import layer_reason
from workbench.train.int8_gradients import gradient_errors, set_int8_gradients

DEVICE = "cpu" if layout.INTERPRETED else "cuda"


def layers(**options):
    """The same layer twice: as it is, and kept on the plain path."""
    torch.manual_seed(3)
    threshold = ThresholdVersion(granularity=options.pop("granularity", "tensor"))
    made = BitLinear(60, 24, threshold=threshold, device=DEVICE, **options)
    plain = BitLinear(60, 24, threshold=threshold, device=DEVICE, **options)
    plain.load_state_dict(made.state_dict())
    plain._fuses = False
    assert made._fuses and layer_reason(made) is None
    return made, plain


def results(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    gradients = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    return [y.detach(), x.grad, *gradients]


@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
@pytest.mark.parametrize("sub_norm", [False, True])
def test_fused_and_plain_agree(granularity, sub_norm):
    fused, plain = layers(granularity=granularity, sub_norm=sub_norm)
    x = torch.randn(2, 5, 60, device=DEVICE)
    for ours, theirs in zip(results(fused, x), results(plain, x), strict=True):
        assert (ours - theirs).norm() <= (1e-2 if sub_norm else 1e-4) * theirs.norm()
    fused.eval(), plain.eval()
    with torch.inference_mode():
        assert (fused(x) - plain(x)).norm() <= 1e-2 * plain(x).norm()
    codes, _ = fused.ternarized()
    assert set(codes.unique().tolist()) <= {-1, 0, 1}


def test_packed_weights_are_kept_for_a_step_and_the_ramp_is_plain():
    fused, _ = layers()
    fused.reuse = True
    x = torch.randn(3, 60, device=DEVICE)
    fused(x)
    kept = fused._kept.value
    fused(x).sum().backward()
    assert fused._kept.value is kept
    fused.forget()
    fused(x)
    assert fused._kept.value is not kept
    fused.strength = 0.5
    half = fused(x)
    fused.strength = 0.0
    assert torch.equal(fused(x), torch.nn.functional.linear(x, fused.weight, fused.bias))
    assert not torch.equal(half, fused(x))


def test_packed_weights_follow_the_optimizer_loading_and_moving():
    fused, other = layers()
    fused.reuse = True
    optimizer, x = torch.optim.SGD(fused.parameters(), lr=0.5), torch.randn(5, 60, device=DEVICE)

    def packed(layer):
        layer(x.to(layer.weight.dtype))
        tiles, row_scales = layer._kept.value
        assert row_scales.dtype == torch.float32
        assert torch.equal(tiles, pack_weights(layer.weight).tiles)
        return tiles

    before = packed(fused)
    fused(x).square().mean().backward()
    optimizer.step()
    fused.forget()
    assert not torch.equal(packed(fused), before)
    fused.load_state_dict(other.state_dict())
    assert torch.equal(packed(fused), before)
    packed(fused.to(torch.bfloat16))


def test_checkpointed_and_compiled_give_the_same_gradients():
    fused, _ = layers(sub_norm=True)
    x = torch.randn(5, 60, device=DEVICE, requires_grad=True)

    def gradients(run):
        for leaf in (x, *fused.parameters()):
            leaf.grad = None
        run(x).square().sum().backward()
        return [leaf.grad.clone() for leaf in (x, *fused.parameters())]

    plain = gradients(fused)
    again = gradients(lambda x: checkpoint(fused, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    backend = "aot_eager" if layout.INTERPRETED else "inductor"
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    for a, b in zip(plain, gradients(compiled), strict=True):
        torch.testing.assert_close(a, b)


def test_a_low_precision_input_over_full_precision_master_weights():
    fused, _ = layers(sub_norm=True, granularity="row")
    y = fused(torch.randn(5, 60, device=DEVICE, dtype=torch.bfloat16))
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and fused.weight.grad.dtype == torch.float32
    assert fused.norm.weight.grad.isfinite().all() and fused.bias.grad.isfinite().all()


def test_training_with_int8_gradients_reaches_the_same_loss():
    torch.manual_seed(11)
    x, wanted = torch.randn(16, 60, device=DEVICE), torch.randn(16, 24, device=DEVICE)
    losses = {}
    for int8 in (False, True):
        fused, _ = layers()
        fused.int8_gradients = int8
        optimizer = torch.optim.SGD(fused.parameters(), lr=2.0)
        for _ in range(6):
            loss = (fused(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[int8] = float(loss.detach())
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)


def test_autocast_reaches_the_fused_path():
    fused, _ = layers()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = fused(torch.randn(3, 60, device=DEVICE))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and fused.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threshold": ThresholdVersion("twn")}, "rule twn has no fused kernel"),
        ({"threshold": ThresholdVersion(), "activations": "none"}, "unquantised activations"),
    ],
)
def test_what_has_no_kernel_takes_the_plain_path_and_says_why(options, reason):
    layer = BitLinear(60, 24, device=DEVICE, **options)
    assert not layer._fuses and reason in layer_reason(layer)
    assert layer(torch.ones(2, 60, device=DEVICE)).isfinite().all()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.filterwarnings("ignore")  # of torch's own set-up of one process
def test_fully_sharded_over_one_process(tmp_path):
    """FSDP2 exchanges the parameters around each pass; the fused layer sees whole ones."""
    from torch.distributed.fsdp import fully_shard

    fused, plain = layers()
    torch.distributed.init_process_group(
        "gloo" if DEVICE == "cpu" else "nccl",
        init_method=f"file://{tmp_path}/store", rank=0, world_size=1,
    )  # fmt: skip
    try:
        mesh = torch.distributed.init_device_mesh(DEVICE, (1,))
        fully_shard(fused, mesh=mesh)
        x = torch.randn(3, 60, device=DEVICE)
        y = fused(x)
        assert (y - plain(x)).norm() <= 1e-4 * y.norm()
        y.sum().backward()
        gradient = fused.weight.grad.full_tensor()
        plain(x).sum().backward()
        assert (gradient - plain.weight.grad).norm() <= 1e-4 * gradient.norm()
    finally:
        torch.distributed.destroy_process_group()


def test_the_check_of_int8_gradients_leaves_the_model_as_it_was():
    config = LlamaConfig(
        vocab_size=31, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(DEVICE).eval()
    to_ternary(model, Policy(ternary=["*.v_proj", "*.down_proj"]), ThresholdVersion())
    ids = torch.randint(0, 31, (1, 16), device=DEVICE)
    errors = gradient_errors(model, ids)
    assert errors["layer"].tolist() == [*(name for name, _ in bit_linears(model)), "all layers"]
    assert (errors["error"] > 1e-4).all() and errors["error"].iloc[-1] < 0.02, errors
    assert not model.training and not any(p.grad is not None for p in model.parameters())
    assert not any(layer.int8_gradients for _, layer in bit_linears(model))
    set_int8_gradients(model, True)
    assert all(layer.int8_gradients for _, layer in bit_linears(model))
