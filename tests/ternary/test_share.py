"""Fused and expert layers: ternary where a linear layer can be, and a share that says the rest."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.pilot.resolve import resolve
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.gates import evaluate
from workbench.report.verdict import caveats
from workbench.ternary import ConversionReport, to_ternary
from workbench.ternary.packed import load_packed, save_packed

SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 60, "pad_token_id": None, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
STATE_SPACE = {
    "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
    "mamba_n_groups": 1, "mamba_expand": 1,
}  # fmt: skip


def converted(family: str, **more: object) -> tuple[torch.nn.Module, ConversionReport]:
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SHAPE | more)
    model = AutoModelForCausalLM.from_config(config).eval()
    return model, to_ternary(model)


@pytest.mark.parametrize(
    ("family", "more", "fused"),
    [
        ("phi3", {}, ("qkv_proj", "gate_up_proj")),
        ("falcon_h1", STATE_SPACE, ("in_proj", "out_proj")),
    ],
)
def test_fused_layers_become_ternary(family: str, more: dict, fused: tuple, tmp_path) -> None:
    model, report = converted(family, **more)
    names = report.named("ternary")
    assert all(any(name.endswith(part) for name in names) for part in fused)
    assert report.ternary_share > (0.9 if family == "phi3" else 0.8)
    assert not report.unmatched, "a usual pattern without a layer here is no slip"
    save_packed(model, tmp_path / "p", report.precisions, report.threshold)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        found, wanted = load_packed(tmp_path / "p")(ids).logits, model(ids).logits
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_experts_stay_precise_and_the_verdict_says_how_many(tmp_path) -> None:
    _, report = converted("qwen3_moe", **EXPERTS)
    assert 0 < report.ternary_share < 0.9
    first = next(iter(report.not_ternary))
    assert "experts" in first and "*" in first
    total = report.ternary_parameters + sum(report.not_ternary.values())
    assert total == pytest.approx(report.body_parameters, rel=0.02), "the rest is norms"
    record = StageRecord("train_qat", tmp_path)
    record.facts["conversion"] = {"not_ternary": report.not_ternary}
    share = Metric("ternary_share", report.ternary_share, "share", "", basis="exact",
                   labels={"arm": "ternary"})  # fmt: skip
    record.add(share)
    pilot = resolve("workbench:base").pilot
    found = [s for s in caveats({"train_qat": record}, pilot) if s.code == "caveat.partly_ternary"]
    assert found[0].values["percent"] == pytest.approx(100 * (1 - share.value))
    assert first in found[0].values["where"]
    (result,) = [
        r for r in evaluate(pilot.report.gates, {"train_qat": record})
        if r.metric == "ternary_share"
    ]  # fmt: skip
    assert result.outcome == "fail" and result.limit == 0.9


def test_a_slip_of_ones_own_pattern_is_still_told() -> None:
    from workbench.pilot.sections.model import Policy

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    report = to_ternary(model, Policy(ternary=["*.q_proj", "*.gate_porj"]))
    assert report.unmatched == ["ternary: *.gate_porj"]
    assert report.ternary_share < 0.2 and "model.layers.*.mlp.gate_proj" in report.not_ternary
