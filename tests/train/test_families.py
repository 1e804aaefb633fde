"""Small checkpoints of three families go all the way: convert, train, pack, load, generate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.check.ternary import check_ternary
from workbench.model.build import build_model
from workbench.pilot.sections.model import Model, Policy
from workbench.records.events import Progress
from workbench.ternary import ThresholdVersion, bit_linears, to_ternary
from workbench.ternary.packed import load_packed, save_packed
from workbench.train.arm import train_arm

VERSION = ThresholdVersion()


def checkpoint(family: str, vocabulary: int, folder: Path, small: SimpleNamespace) -> Path:
    config = AutoConfig.for_model(
        family,
        **small.SHAPE | {"vocab_size": vocabulary, "max_position_embeddings": 64},
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_convert_train_pack_load_generate(
    small: SimpleNamespace, tmp_path: Path, family: str
) -> None:
    setup = small.make_setup(steps=12, lr=5e-3, evaluations=1)
    vocabulary = len(setup.tokenizer)
    section = Model(checkpoint=str(checkpoint(family, vocabulary, tmp_path / "hf", small)))
    model = build_model(section, vocabulary, small.SEQUENCE_LENGTH, small.SEED)
    biases = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith(".bias")}
    assert len(biases) == (6 if family == "qwen2" else 0)
    report = to_ternary(model, Policy(int8=[]), VERSION)
    assert len(report.named("ternary")) == 14

    progress = Progress(tmp_path / "events.jsonl", "train_qat")
    evaluator = train_arm("ternary", model, setup, tmp_path / "arm", progress)
    loss = evaluator.telemetry.frame("loss")["loss"]
    assert loss.iloc[-3:].mean() < loss.iloc[:3].mean()
    parameters = dict(model.named_parameters())
    assert all(not torch.equal(parameters[name], before) for name, before in biases.items())

    model.eval()
    with torch.no_grad():  # what the file keeps of them
        for name in ("model.embed_tokens", "lm_head"):
            weight = model.get_submodule(name).weight
            weight.copy_(weight.bfloat16())
    save_packed(model, tmp_path / "packed", report.precisions, VERSION, setup.tokenizer)
    assert check_ternary(tmp_path / "packed").ok
    loaded = load_packed(tmp_path / "packed", expect=VERSION)
    assert not bit_linears(loaded)
    ids = torch.tensor([setup.tokens[:9].astype("int64").tolist()])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    written = loaded.generate(ids, **options)
    assert written.shape == (1, 15)
    assert torch.equal(written, model.generate(ids, **options))
