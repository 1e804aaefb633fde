"""Conversion of Llama-, Qwen- and Mistral-type models by a policy, its report and its inverse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, PretrainedConfig

from workbench.errors import ConfigError
from workbench.pilot.sections.model import Policy
from workbench.ternary import (
    BitLinear,
    ThresholdVersion,
    bit_linears,
    forget_quantised,
    set_reuse,
    set_strength,
    to_full_precision,
    to_ternary,
)
from workbench.ternary.policy import resolve
from workbench.ternary.post_training import ternarize_post_training

GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 32}
NEOX = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 64,
}  # fmt: skip


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def test_there_and_back_changes_nothing(model, ids) -> None:
    before, names = logits(model, ids), set(model.state_dict())
    report = to_ternary(model, Policy(), ThresholdVersion())
    assert len(report.named("ternary")) == 14 == len(bit_linears(model))
    assert set(model.state_dict()) == names
    ternary = logits(model, ids)
    assert not torch.allclose(ternary, before)
    set_strength(model, 0.0)
    assert torch.equal(logits(model, ids), before)
    set_strength(model, 1.0)
    assert torch.equal(logits(model, ids), ternary)
    to_full_precision(model)
    assert not bit_linears(model)
    assert torch.equal(logits(model, ids), before)


def test_every_trainable_weight_gets_a_gradient(model, ids) -> None:
    to_ternary(model.train(), Policy(), ThresholdVersion("learned", "row"), sub_norm=True)
    model(ids, labels=ids).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias of k moves all scores of a query alike, so the softmax hides it.
    assert [n for n in without if not n.endswith("k_proj.bias")] == []


def test_the_inverse_keeps_a_norm_inside(llama, ids) -> None:
    to_ternary(llama, Policy(), ThresholdVersion(), sub_norm=True)
    set_strength(llama, 0.0)
    normed = logits(llama, ids)
    to_full_precision(llama)
    assert not bit_linears(llama)
    assert torch.equal(logits(llama, ids), normed)


def test_the_most_precise_list_wins(llama) -> None:
    policy = Policy(
        ternary=["*_proj"], int8=["*.layers.1.*", "*embed_tokens"], high_precision=["*.1.*.k_proj"]
    )
    precisions = resolve(policy, llama).precisions
    assert precisions["model.layers.0.self_attn.q_proj"] == "ternary"
    assert precisions["model.layers.1.self_attn.q_proj"] == "int8"
    assert precisions["model.layers.1.self_attn.k_proj"] == "high_precision"


def test_the_report_says_what_was_not_converted_and_why(llama) -> None:
    policy = Policy(ternary=["*", "*.c_attn"], int8=[], high_precision=[])
    report = to_ternary(llama, policy, ThresholdVersion())
    assert isinstance(llama.lm_head, nn.Linear) and not isinstance(llama.lm_head, BitLinear)
    assert "an embedding" in report.reasons["model.embed_tokens"]
    assert "shares its weight with model.embed_tokens" in report.reasons["lm_head"]
    assert report.unmatched == ["ternary: *.c_attn"]
    assert "no module matches ternary: *.c_attn" in str(report)
    assert llama.lm_head.weight is llama.model.embed_tokens.weight
    linear = sum(layer.weight.numel() for _, layer in bit_linears(llama))
    assert report.ternary_parameters == linear < report.parameters


def test_layers_that_are_no_linear_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 3))
    report = to_ternary(model, Policy(ternary=["*"], int8=[]), ThresholdVersion())
    assert report.named("ternary") == ["0"]
    assert report.reasons == {"1": "a Conv1d, not a linear layer"}


def test_a_policy_that_makes_nothing_ternary_is_an_error_and_changes_nothing(llama) -> None:
    with pytest.raises(ConfigError, match=r"\*\.qproj.*\n.*model\.layers\.0\.self_attn\.q_proj"):
        to_ternary(llama, Policy(ternary=["*.qproj"]), ThresholdVersion())
    assert not bit_linears(llama)


@pytest.mark.parametrize(
    ("config", "policy", "message"),
    [
        (
            GPT2Config(**GPT2),
            Policy(),
            r"(?s)c_attn: a Conv1D, not a linear layer.*others cannot be converted",
        ),
        (GPT2Config(**GPT2), Policy(ternary=["*.c_fc"]), r"h\.0\.mlp\.c_fc: a Conv1D"),
        (GPT2Config(**GPT2), Policy(ternary=["*lm_head"]), r"lm_head: shares its weight with"),
        (
            GPTNeoXConfig(**NEOX),
            Policy(),
            r"e\.g\. gpt_neox\.layers\.0\.attention\.query_",
        ),
    ],
)
def test_families_with_other_names_or_other_layers_say_what_could_be_ternary(
    config: PretrainedConfig, policy: Policy, message: str
) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for convert in (
        lambda: to_ternary(model, policy, ThresholdVersion()),
        lambda: ternarize_post_training(model, policy),
    ):
        with pytest.raises(ConfigError, match=message):
            convert()


def test_accumulation_with_kept_weights_trains_the_same(llama, ids) -> None:
    to_ternary(llama.train(), Policy(), ThresholdVersion())
    other = copy.deepcopy(llama)
    set_reuse(other, True)
    for model in (llama, other):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            for part in ids:
                model(part[None], labels=part[None]).loss.backward()
            optimizer.step()
            forget_quantised(model)
            optimizer.zero_grad()
    for (name, a), b in zip(llama.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
