"""The search for INT4's scales against brute force, and what it promises."""

from __future__ import annotations

import itertools

import pytest
import torch
from ternary_kernels.quantizers import INT4_GROUP, quantize_int4, spread


def squared_error(w: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Of each row, in float64."""
    form = values.double() * spread(scale.double(), w.shape[1], INT4_GROUP)
    return (w.double() - form).square().sum(1)


def test_the_search_is_near_the_best_of_all_codes() -> None:
    """All 16^4 codes of four weights, each with its best scale: nothing can be nearer."""
    w = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = torch.tensor(list(itertools.product(range(-8, 8), repeat=4)), dtype=torch.float64)
    explained = (w @ codes.T).square() / codes.square().sum(1).clamp(min=1)
    best = w.square().sum(1) - explained.max(1).values
    found = squared_error(w, *quantize_int4(w.float()))
    # Four weights, sixteen codes: next to nothing is left to either, so the whole is compared.
    assert float(found.sum()) <= float(best.sum()) + 2e-3 * float(w.square().sum())
    assert bool((found >= best - 1e-9).all())


def test_whole_groups_are_near_the_best_scale() -> None:
    """Of 32 weights: every scale of a fine grid, of either sign, with the nearest codes."""
    w = torch.randn(40, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reach = w.abs().amax(1, keepdim=True)
    errors = []
    for part in torch.linspace(1 / 12, 1 / 4, 1500).tolist():
        for sign in (1.0, -1.0):
            scale = sign * part * reach
            codes = (w / scale).round().clamp(-8, 7)
            errors.append((w - codes * scale).square().sum(1))
    best, found = torch.stack(errors).amin(0), squared_error(w, *quantize_int4(w.float()))
    assert float(found.sum()) <= 1.02 * float(best.sum())


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (7, 32), (5, 33), (40, 300)])
def test_never_worse_than_the_plain_start(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2)).pow(3)  # long tails
    values, scale = quantize_int4(w)
    assert values.shape == shape and scale.shape == (shape[0], -(-shape[1] // 32))
    assert int(values.min()) >= -8 and int(values.max()) <= 7
    groups = torch.nn.functional.pad(w, (0, -shape[1] % 32)).unflatten(1, (-1, 32))
    plain = groups.abs().amax(-1) / 7
    codes = (w / spread(plain, shape[1], 32)).round().clamp(-8, 7)
    allowed = 1.001 * squared_error(w, codes, plain) + 1e-6 * w.double().square().sum(1)
    assert bool((squared_error(w, values, scale) <= allowed).all())


def test_what_fits_comes_back_exactly() -> None:
    values = torch.randint(-8, 8, (6, 96), generator=torch.Generator().manual_seed(3))
    values[:, ::32] = -8
    scale = torch.tensor([0.5, 2.0, 0.001953125])
    w = values.float() * scale.repeat_interleave(32)
    found, scales = quantize_int4(w)
    assert torch.equal(found.long(), values)
    assert torch.equal(scales.float(), scale.expand(6, 3))


def test_zeros_and_extremes() -> None:
    values, scale = quantize_int4(torch.zeros(2, 40))
    assert not values.any() and not scale.any()
    small, _ = quantize_int4(torch.full((1, 32), 1e-30))
    assert not small.any()  # below float16: nothing is left, and nothing is NaN
    with pytest.raises(ValueError, match="not finite in float16"):
        quantize_int4(torch.full((1, 32), 1e6))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(50, 70)
    whole = quantize_int4(w)
    monkeypatch.setattr("ternary_kernels.quantizers.INT4_BLOCK", 7)
    for one, other in zip(whole, quantize_int4(w), strict=True):
        assert torch.equal(one, other)
