"""Post-training ternarisation: the least-squares optimum, checked against every choice."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion
from workbench.ternary.least_squares import least_squares
from workbench.ternary.packed import load_packed, save_packed
from workbench.ternary.policy import PRECISIONS
from workbench.ternary.post_training import input_importance, ternarize_post_training
from workbench.ternary.quantize import spread, ternarize

numbers = st.floats(-4, 4, width=32)


def error(w, h, codes, scale) -> float:
    return float((h * (w - codes * scale).square()).sum())


def best_of_all(w: torch.Tensor, h: torch.Tensor) -> float:
    """The least error over all 3^K codes, each with its own best scale."""
    least = error(w, h, torch.zeros_like(w), 0.0)
    for code in itertools.product((-1.0, 0.0, 1.0), repeat=len(w)):
        codes = torch.tensor(code, dtype=torch.float64)
        if codes.any():
            scale = (h * w * codes).sum() / (h * codes.square()).sum()
            least = min(least, error(w, h, codes, scale))
    return least


@given(
    st.lists(numbers, min_size=5, max_size=5), st.lists(st.floats(0.01, 9), min_size=5, max_size=5)
)
@settings(max_examples=25, deadline=None)
def test_no_codes_and_scale_are_better(w, h) -> None:
    w, h = torch.tensor(w, dtype=torch.float64), torch.tensor(h, dtype=torch.float64)
    codes, scale = least_squares(w[None].float(), "row", h.float())
    found = error(w, h, codes[0].double(), scale.double())
    assert found <= best_of_all(w, h) + 1e-5 * (1 + error(w, h, 0.0, 0.0))


@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
def test_it_beats_absmean_at_every_granularity(granularity) -> None:
    w = torch.randn(6, 300, generator=torch.Generator().manual_seed(4))
    w *= torch.logspace(-1, 1, 6)[:, None]
    ours = least_squares(w, granularity)
    absmean = ternarize(w, ThresholdVersion(granularity=granularity))
    assert ours[1].shape == absmean[1].shape
    loss = [
        float((w - codes * spread(scale, 300)).square().sum()) for codes, scale in (ours, absmean)
    ]
    assert loss[0] < loss[1]


def test_finer_scales_never_lose() -> None:
    w = torch.randn(6, 300) * torch.rand(6, 300)
    losses = []
    for granularity in ("tensor", "row", "group128"):
        codes, scale = least_squares(w, granularity)
        losses.append(float((w - codes * spread(scale, 300)).square().sum()))
    assert losses == sorted(losses, reverse=True)


def test_weights_of_zero_and_silent_inputs_give_a_usable_scale() -> None:
    codes, scale = least_squares(torch.zeros(3, 8), "row", torch.zeros(8))
    assert not codes.any() and (scale > 0).all() and scale.isfinite().all()


def test_importance_is_the_mean_square_of_what_the_layer_sees(llama, ids) -> None:
    name = "model.layers.0.mlp.down_proj"
    seen = []
    hook = llama.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    found = input_importance(llama, [name], [ids[:1], ids[1:]], activations="none")
    hook.remove()
    expected = torch.cat([x.flatten(0, 1) for x in seen]).square().sum(0)
    torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_model_is_ternarised_packed_and_loaded(model, ids, tmp_path, calibrated) -> None:
    calibration = [ids] if calibrated else None
    report = ternarize_post_training(
        model, Policy(int8=[]), granularity="row", calibration=calibration
    )
    assert report.threshold.id == "least_squares/row/half_even/eps1e-5"
    assert len(report.named("ternary")) == 14 and set(report.precisions.values()) <= {*PRECISIONS}
    model.get_input_embeddings().weight.data = (
        model.get_input_embeddings().weight.data.bfloat16().float()
    )
    model.get_output_embeddings().weight.data = (
        model.get_output_embeddings().weight.data.bfloat16().float()
    )
    save_packed(model, tmp_path / "p", report.precisions, report.threshold)
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(load_packed(tmp_path / "p")(ids).logits, expected)


def test_weights_that_are_not_finite_are_named(llama) -> None:
    llama.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("inf")
    with pytest.raises(ConfigError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        ternarize_post_training(llama, Policy())
