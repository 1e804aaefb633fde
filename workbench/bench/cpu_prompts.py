"""Prompts in turns: ternary on tiles and on vectors, bf16, and torch's own bf16 products.

What a tile unit gains shows only beside the vectors of the same minute, and whether our
full-precision arm is a fair one only beside what everybody else would use. torch's contender
multiplies what the layers multiply and nothing else: no attention, no norms, no residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from ternary_kernels import available_isas, backend, force_isa
from ternary_kernels.llama import LINEARS, LlamaConfig

from workbench.bench.cpu_rows import CpuRow
from workbench.bench.cpu_turns import Contender, Limits, Turns

LIMIT_S = 90.0
"""No other round is begun past it: five rounds take less on two cores of a server."""
_TORCH_LAYERS = 4
"""torch's weights are those of so many layers, over and over: beyond most caches."""


def prompt_rows(
    limits: Limits, config: LlamaConfig, prompt: int, ternary: Contender, bf16: Contender
) -> Iterator[CpuRow]:
    """A row each and the ratios between them; ``vectors`` where a tile unit computes else."""
    theirs = Contender(
        "products 512", ("torch", "bf16", limits.threads), _torch_products(config, prompt)
    )
    contenders = [ternary, bf16, theirs]
    if on_vectors := _on_vectors(ternary):
        contenders.append(on_vectors)
    turns = Turns(limits, *contenders, limit_s=LIMIT_S)
    yield from turns.rows()
    if on_vectors:
        yield turns.ratio("prefill 512 over vectors", ternary, on_vectors)
    yield turns.ratio("prefill 512 over bf16", ternary, bf16)
    yield turns.ratio("prefill 512 over torch's products", bf16, theirs)


def _on_vectors(it: Contender) -> Contender | None:
    """The same model with the vectors beside the tile unit; None where there is no such unit."""
    tiles, vectors = backend().isa, backend().vectors
    if vectors == tiles or vectors not in available_isas():
        return None

    def run() -> int:
        force_isa(vectors)
        try:
            return it.run()
        finally:
            force_isa(tiles)

    engine, precision, threads = it.what
    return Contender("prefill 512 on vectors", (engine.split(" + ")[0], precision, threads), run)


def _torch_products(config: LlamaConfig, prompt: int) -> Callable[[], int]:
    shapes = [config.linear_shape(name) for name in LINEARS] * min(_TORCH_LAYERS, config.num_layers)
    weights = [torch.randn(shape, dtype=torch.bfloat16) for shape in shapes]
    x = {K: torch.randn(prompt, K, dtype=torch.bfloat16) for _, K in shapes}
    rounds = np.arange(config.num_layers * len(LINEARS)) % len(weights)

    def run() -> int:
        with torch.inference_mode():
            for i in rounds:
                torch.nn.functional.linear(x[shapes[i][1]], weights[i])
        return prompt

    return run
