"""Every operator of torch.library: what it says it changes, its fake kernel, its gradients.

See check_products for how these files are run.
"""

import pytest
import ternary_kernels.gpu.llama  # noqa: F401 (registers the engine's operators)
import torch
from ternary_kernels import PackedInt8
from ternary_kernels.gpu import layout, pack_weights, quantize
from ternary_kernels.gpu.matrices import place

DEVICE = "cpu" if layout.INTERPRETED else "cuda"
SLOTS, KV, CONTEXT, D = 2, 1, 32, 12


def ints(*values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def calls() -> dict[str, list[tuple]]:
    """For each operator, arguments that take each of its ways."""
    x, gate_up = torch.randn(3, 200, device=DEVICE), torch.randn(3, 400, device=DEVICE)
    gain, rows, rstd = torch.rand(200, device=DEVICE), quantize(x), torch.rand(3, device=DEVICE)
    master = torch.randn(24, 200, device=DEVICE)
    codes = torch.randint(0, 3, master.shape, dtype=torch.uint8, device=DEVICE)
    tensor, group = (pack_weights(master, granularity) for granularity in ("tensor", "group128"))
    packed, grouped = (tensor.tiles, tensor.row_scales), (group.tiles, group.row_scales)
    table = place(PackedInt8.from_float(master.cpu()), DEVICE, torch.float32)
    int8 = table.tiles, table.scale
    cache = [torch.randn(SLOTS, KV, CONTEXT, 16, device=DEVICE) for _ in range(2)]
    tables = [torch.randn(CONTEXT, D // 2, device=DEVICE) for _ in range(2)]
    at, tiles = (ints(0, 1, 1), ints(3, -1, 0)), torch.stack([ints(0, 1), ints(1, 2)])
    qkv, q = torch.randn(3, (2 + 2 * KV) * D, device=DEVICE), torch.randn(3, 2, D, device=DEVICE)
    norm = torch.rand(D, device=DEVICE)
    learned = [t.clone().requires_grad_() for t in (x, master, gain)]
    return {
        "abs_sums": [(master, False), (master, True)],
        "add_half_rows": [(x, x.bfloat16(), gain, 1e-5, torch.bfloat16)],
        "add_quantize_rows": [(x, x.bfloat16(), gain, 1e-5)],
        "attend": [(q, *at, None, *cache, 0), (q, *at, tiles, *cache, 7)],
        "dequantize_rows": [(rows.q, rows.x_scale, 200, torch.bfloat16)],
        "embed": [(ints(3, 0, 23), *int8, 200)],
        "half_rows": [
            (x, gain, 1e-5, "none", torch.bfloat16), (gate_up, None, 1e-5, "silu", torch.float16)
        ],
        "linear_half": [(x.half(), *packed, None, 24)],
        "linear_int8": [(*rows, *packed, None, 24, 200, torch.float32)],
        "linear_int8_weight": [(rows.q, rows.x_scale, *int8, None, 200, torch.float32)],
        "pack": [(codes, None, "half_even")],
        "qat_linear": [(learned[0], learned[1], None, learned[2], 1e-5, *packed, False)],
        "quantize_rows": [(x, gain, 1e-5, "none"), (gate_up, None, 1e-5, "relu2")],
        "rms_norm_backward": [(x, x, gain, rstd)],
        "rotate_quantize_rows": [(x, gain, 1e-5, 8), (x, None, 1e-5, 4)],
        "rope_append": [
            (qkv, *at, *tables, *cache, None, None, 1e-5),
            (qkv, *at, *tables, *cache, norm, norm, 1e-5),
        ],
        "unpack": [
            (packed[0], None, 24, 200, torch.uint8), (*grouped, 24, 200, torch.bfloat16)
        ],
    }  # fmt: skip


def test_every_operator_is_named_here():
    names = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    registered = {n.removeprefix("ternary_gpu::") for n in names if n.startswith("ternary_gpu::")}
    assert registered == calls().keys()


@pytest.mark.parametrize("name", calls())
def test_operators_pass_opcheck(name):
    for arguments in calls()[name]:
        torch.library.opcheck(getattr(torch.ops.ternary_gpu, name), arguments)
