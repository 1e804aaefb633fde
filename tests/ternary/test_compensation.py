"""Codes that make up for each other's errors, and the master weights that ternarise to them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.errors import ConfigError
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, bit_linears, set_strength, to_ternary
from workbench.ternary.blockwise import compensate
from workbench.ternary.compensation import compensated_codes, master_weights
from workbench.ternary.least_squares import least_squares
from workbench.ternary.quantize import spread, ternarize

GRANULARITIES = ("tensor", "row", "group128")
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


def layer_and_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [32, 192] and inputs [2048, 192] that depend on each other, as a network's do."""
    mixed = torch.randn(2048, 40) @ torch.randn(40, 192)
    return torch.randn(32, 192), mixed + 0.5 * torch.randn(2048, 192)


def error(
    w_NK: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, x_MK: torch.Tensor
) -> float:
    """Of the layer's outputs, squared, over the outputs themselves."""
    wrong = w_NK - codes.float() * spread(scale, w_NK.shape[1])
    return float((x_MK @ wrong.T).square().sum() / (x_MK @ w_NK.T).square().sum())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_layer_errs_by_half_of_what_codes_chosen_alone_do(granularity) -> None:
    w_NK, x_MK = layer_and_inputs()
    moments = x_MK.T @ x_MK
    alone = least_squares(w_NK, granularity, moments.diagonal())
    codes, scale, _ = compensated_codes(w_NK, moments, granularity)
    assert codes.dtype == torch.int8 and set(codes.unique().tolist()) <= {-1, 0, 1}
    assert scale.shape == alone[1].shape and bool((scale > 0).all())
    assert error(w_NK, codes, scale, x_MK) < 0.5 * error(w_NK, *alone, x_MK)


def test_inputs_that_do_not_depend_on_each_other_have_nothing_to_make_up_for() -> None:
    w_NK = torch.randn(16, 64)
    codes, scale, near = compensated_codes(w_NK, torch.eye(64), "row")
    alone = least_squares(w_NK, "row")
    assert torch.equal(codes, alone[0]) and torch.allclose(scale, alone[1], rtol=1e-5)
    assert torch.allclose(near, w_NK)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
def test_master_weights_ternarise_to_exactly_these_codes_and_scales(granularity, rounding) -> None:
    w_NK, x_MK = layer_and_inputs()
    threshold = ThresholdVersion(granularity=granularity, rounding=rounding)
    codes, scale, near = compensated_codes(w_NK, x_MK.T @ x_MK, granularity)
    again, its_scale = ternarize(master_weights(codes, scale, near, threshold), threshold)
    assert torch.equal(again, codes)
    assert torch.allclose(its_scale, scale, rtol=1e-5)


def test_dead_inputs_rows_of_zeros_and_a_single_token_stay_finite() -> None:
    w_NK, x_MK = layer_and_inputs()
    w_NK[3] = 0
    x_MK[:, 5:90] = 0
    for inputs in (x_MK, x_MK[:1], torch.zeros_like(x_MK)):
        codes, scale, near = compensated_codes(w_NK, inputs.T @ inputs, "row")
        master = master_weights(codes, scale, near, ThresholdVersion(granularity="row"))
        assert bool(master.isfinite().all()) and not master[3].any() and not codes[3].any()


def drift(model: nn.Module, ids_BT: torch.Tensor, before: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(ids_BT).logits - before).square().mean() / before.square().mean())


@pytest.mark.parametrize("rotation", ["none", 128])
def test_a_model_stays_nearer_to_what_it_was_on_text_that_it_was_not_calibrated_on(
    rotation,
) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval()
    fresh = torch.randint(0, 100, (4, 32))
    with torch.no_grad():
        before = model(fresh).logits
    to_ternary(model, threshold=ThresholdVersion(granularity="row", rotation=rotation))
    rounded = drift(model, fresh, before)
    seen: list[tuple[int, int]] = []
    batches = torch.randint(0, 100, (24, 32)).split(8)
    outside = compensate(model, batches, lambda *done: seen.append(done))
    assert outside == [] and seen == [(1, 2), (2, 2)]
    assert all(layer.strength == 1.0 for _, layer in bit_linears(model)) and not model.training
    assert drift(model, fresh, before) < 0.8 * rounded


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.up_proj(x).relu())


class Block(nn.Module):
    """Even sequences go to one expert, odd ones to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([Expert(), Expert()])

    def forward(self, hidden_states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.experts[int(ids[0, 0]) % 2](hidden_states)


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(100, 32), nn.ModuleList([Block(), Block()])

    def forward(self, ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.layers:
            x = block(hidden_states=x, ids=ids)
        return x


def test_experts_that_the_first_batch_does_not_ask_are_calibrated_too() -> None:
    model = Routed()
    to_ternary(model, threshold=ThresholdVersion(granularity="row"))
    masters = {name: layer.weight.clone() for name, layer in bit_linears(model)}
    compensate(model, [torch.full((2, 16), 4), torch.full((2, 16), 7)])
    changed = [n for n, layer in bit_linears(model) if not torch.equal(layer.weight, masters[n])]
    assert len(changed) == 8 and changed == list(masters)


def test_a_head_outside_the_blocks_is_named_and_left() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, tie_word_embeddings=False))
    policy = Policy(ternary=["*.q_proj", "lm_head"], int8=[])
    to_ternary(model, policy, ThresholdVersion(granularity="row"))
    head = model.lm_head.weight.clone()
    assert compensate(model, torch.randint(0, 100, (4, 16)).split(4)) == ["lm_head"]
    assert torch.equal(model.lm_head.weight, head)


def test_a_model_without_blocks_is_refused_in_a_sentence() -> None:
    model = nn.ModuleDict({"up_proj": nn.Linear(64, 64)})
    to_ternary(model, Policy(ternary=["up_proj"]))
    set_strength(model, 0.5)
    with pytest.raises(ConfigError, match="no list of blocks"):
        compensate(model, [torch.zeros(1, 4, dtype=torch.int64)])
