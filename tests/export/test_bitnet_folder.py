"""Hugging Face's BitNet folders: loaded by transformers and by our own engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from workbench.engine.engine import Engine
from workbench.errors import ConfigError
from workbench.export.bitnet_folder import write_bitnet_folder
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.packed import load_packed, save_packed

TOKENS = [0, 7, 300, 41, 5, 260, 99, 12]


@torch.no_grad()
def logits(model) -> np.ndarray:
    return model(torch.tensor([TOKENS])).logits[0].float().numpy()


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # where torch compiles
@pytest.mark.parametrize(
    ("family", "tied"), [("llama", True), ("llama", False), ("qwen2", False), ("qwen3", True)]
)
def test_transformers_and_the_engine_compute_the_same(
    packed, tmp_path: Path, tokenizer, family: str, tied: bool
) -> None:
    folder, out = packed(family, tie_word_embeddings=tied), tmp_path / "out"
    ours = load_packed(folder)
    done = write_bitnet_folder(ours, tokenizer, out)
    assert len(done.ternary) == 12
    assert "model.layers.0.self_attn.q_proj" in done.widened and "rounded to bf16" in str(done)
    with torch.compiler.set_stance("force_eager"):  # it would compile its unpacking for a minute
        theirs = AutoModelForCausalLM.from_pretrained(out).eval()
        assert {p.dtype for p in theirs.parameters()} == {torch.bfloat16}
        torch.nn.Module.float(theirs)  # the same weights, without the rounding of bf16 between them
        wanted = logits(theirs)
    kinds = [type(m).__name__ for m in theirs.modules()]
    assert kinds.count("BitLinear" if family == "qwen2" else "AutoBitLinear") == 12
    assert 0 < done.scale_error < 2**-8
    # INT8 matrices were rounded to bf16, and their activations are not rounded to INT8 any more
    assert error(wanted, logits(ours)) < 2e-2
    with Engine.load(out, kv_dtype="float32") as engine:
        assert error(engine.logits(TOKENS), wanted) < 2e-2
    words = AutoTokenizer.from_pretrained(out)
    assert words("a story").input_ids == tokenizer("a story").input_ids


def test_codes_and_scales_are_kept(packed, tmp_path: Path) -> None:
    folder = packed()
    ours = load_packed(folder)
    write_bitnet_folder(ours, None, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    layer, name = ours.model.layers[1].mlp.down_proj, "model.layers.1.mlp.down_proj"
    weight = found[f"{name}.weight"]
    assert weight.dtype == torch.uint8 and weight.shape == (64, 320)
    rows = torch.cat([weight >> shift & 3 for shift in (0, 2, 4, 6)]).to(torch.int8) - 1
    torch.testing.assert_close(rows, layer.values())
    torch.testing.assert_close(found[f"{name}.weight_scale"], layer.scale.bfloat16())
    fields = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert fields["linear_class"] == "autobitlinear"
    assert set(fields["modules_to_not_convert"]) == {
        "lm_head", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
    }  # fmt: skip


def test_row_scales_are_refused_with_where_they_fit(packed, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keeps its ternary codes[\s\S]*\.gguf"):
        write_bitnet_folder(load_packed(packed(granularity="row")), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"sub_norm": True}, "norm inside"), ({"activations": "none"}, "activations as they are")],
)
def test_what_the_format_cannot_say_is_refused(tmp_path: Path, settings: dict, reason: str) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    report = to_ternary(model, Policy(), ThresholdVersion(), **settings)
    save_packed(model, tmp_path / "x", report.precisions, ThresholdVersion())
    with pytest.raises(ConfigError, match=reason):
        write_bitnet_folder(load_packed(tmp_path / "x"), None, tmp_path / "out")
