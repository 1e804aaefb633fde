"""The bf16 decode step that others would write: plain PyTorch under ``torch.compile``.

One function for a block, compiled once and used for every layer (the shapes are the same), SDPA
over a static cache, and the whole step in one CUDA graph. It shares nothing with the engine but
the shape: what the engine's bf16 arm is held against.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.model.presets import Shape

EPS = 1e-5


def block(
    x: Tensor, qkv: Tensor, o: Tensor, gate_up: Tensor, down: Tensor, norms: Tensor,
    keys: Tensor, values: Tensor, position: Tensor, cos: Tensor, sin: Tensor, seen: Tensor,
) -> Tensor:  # fmt: skip
    """x [1, hidden] bf16 after one layer. keys, values [1, G, context, D]; position [1]."""
    G, D = keys.shape[1], keys.shape[3]
    heads = F.linear(F.rms_norm(x, x.shape[-1:], norms[0], EPS), qkv).view(1, -1, 1, D)
    q, k, v = heads.split([heads.shape[1] - 2 * G, G, G], 1)
    keys.index_copy_(2, position, rotated(k, cos, sin))
    values.index_copy_(2, position, v)
    mixed = F.scaled_dot_product_attention(
        rotated(q, cos, sin), keys, values, attn_mask=seen, enable_gqa=q.shape[1] != G
    )
    x = x + F.linear(mixed.reshape(1, -1), o)
    gate, up = F.linear(F.rms_norm(x, x.shape[-1:], norms[1], EPS), gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def compiled_step(shape: Shape, prompt: int, output: int, device: str) -> Callable[[], None]:
    """A call that decodes ``output`` tokens from position ``prompt``, greedily, and waits."""
    from ternary_kernels.gpu.graphs import Graphs

    options = {"dtype": torch.bfloat16, "device": device}

    def draw(*size: int) -> Tensor:
        return torch.randn(size, **options) * size[-1] ** -0.5

    context, D = prompt + output + 1, shape.head_dim
    (q, k, v, o, gate, up, down) = shape.block_linears
    layers = [
        (
            draw(q[0] + k[0] + v[0], q[1]), draw(*o), draw(gate[0] + up[0], up[1]), draw(*down),
            torch.ones(2, shape.hidden, **options),
            torch.randn(1, shape.kv_heads, context, D, **options),
            torch.randn(1, shape.kv_heads, context, D, **options),
        )
        for _ in range(shape.layers)
    ]  # fmt: skip
    embedding = draw(shape.vocab, shape.hidden)
    head = embedding if shape.tied else draw(shape.vocab, shape.hidden)
    last_norm = torch.ones(shape.hidden, **options)
    frequencies = shape.rope_theta ** -(torch.arange(0, D, 2, device=device) / D)
    angles = torch.arange(context, device=device)[:, None] * frequencies
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    token = torch.ones(1, dtype=torch.int64, device=device)
    position = torch.full((1,), prompt, dtype=torch.int64, device=device)
    places = torch.arange(context, device=device)
    torch._dynamo.reset()
    backend = "inductor" if device == "cuda" else "eager"
    run_block = torch.compile(block, dynamic=False, fullgraph=True, backend=backend)

    def step() -> Tensor:
        x, seen = embedding[token], (places <= position)[None, None, None]
        for tensors in layers:
            x = run_block(x, *tensors, position, cos[position], sin[position], seen)
        logits = F.linear(F.rms_norm(x, x.shape[-1:], last_norm, EPS), head)
        token.copy_(logits.argmax(1))
        position.add_(1)
        return token

    graphs = Graphs(device == "cuda")

    @torch.inference_mode()
    def decode() -> None:
        graphs.run("step", step, lambda: position.fill_(prompt), output).cpu()

    return decode
