"""Ready ternary models of every format become packed folders with the same codes and logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitNetConfig, LlamaConfig, PreTrainedModel

from workbench.check.ternary import check_ternary
from workbench.engine.engine import Engine
from workbench.engine.ready_ternary import load_ready_ternary, local_path, ready_config
from workbench.errors import ConfigError, StageError
from workbench.export.bitnet_folder import write_bitnet_folder
from workbench.export.gguf_file import write_gguf
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.master import save_master
from workbench.ternary.packed import load_packed, save_packed
from workbench.ternary.packed_layers import PackedTernaryLinear

gguf = pytest.importorskip("gguf")

SHAPE = {
    # 256 inputs suit every type, 320 those with blocks of 64 and 32
    "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 1, "head_dim": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def packed(folder: Path, granularity: str = "tensor", **config) -> Path:
    """Written by the workbench itself, scales that float16 and bf16 hold."""
    torch.manual_seed(5)
    kind = config.pop("kind", LlamaConfig)
    model = AutoModelForCausalLM.from_config(kind(**SHAPE | config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    threshold = ThresholdVersion(granularity=granularity)
    report = to_ternary(model, Policy(), threshold)
    save_packed(model, folder, report.precisions, threshold)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith(".scale"):
            tensors[name] = tensors[name].bfloat16().half().float().clamp(min=1e-4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(model: PreTrainedModel | Path) -> np.ndarray:
    load = Engine.load if isinstance(model, Path) else Engine.from_model
    with load(model, kv_dtype="float32") as engine:
        return engine.logits(TOKENS)


def taken_in(path: Path, folder: Path, said: list[str] | None = None) -> Path:
    ready = load_ready_ternary(path, (said if said is not None else []).append)
    save_packed(ready.model, folder, ready.precisions, ready.threshold)
    assert ready.ternary_parameters / ready.body_parameters > 0.99
    return folder


def same(one: Path, other: Path) -> None:
    """The same codes, and logits as near as scales in 16 bits allow."""
    ours, theirs = (
        {
            name: module
            for name, module in load_packed(folder).named_modules()
            if isinstance(module, PackedTernaryLinear)
        }
        for folder in (one, other)
    )
    assert ours.keys() == theirs.keys() and len(ours) == 7
    assert all(torch.equal(ours[name].codes, theirs[name].codes) for name in ours)
    a, b = logits(one), logits(other)
    assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(a)
    assert check_ternary(other).ok


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_packed_bitnet_folders_of_both_conventions(bias: bool, tied: bool, tmp_path: Path) -> None:
    """Biases are written with the class that divides (Falcon-E's), else the one that multiplies."""
    ours = packed(tmp_path / "ours", attention_bias=bias, tie_word_embeddings=tied)
    folder = tmp_path / "theirs"
    write_bitnet_folder(load_packed(ours), None, folder)
    linear_class = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert linear_class["linear_class"] == ("bitlinear" if bias else "autobitlinear")
    same(ours, taken_in(folder, tmp_path / "again"))


def test_a_bitnet_folder_without_a_class_divides(tmp_path: Path) -> None:
    """As Falcon-E's."""
    ours, folder = packed(tmp_path / "ours", attention_bias=True), tmp_path / "theirs"
    write_bitnet_folder(load_packed(ours), None, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["linear_class"]
    (folder / "config.json").write_text(json.dumps(config))
    same(ours, taken_in(folder, tmp_path / "again"))


def test_bitnet_masters_are_made_ternary_as_when_they_are_used(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(BitNetConfig(**SHAPE)).eval()
    model.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs/config.json"
    named = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": named}))
    report = to_ternary(model)
    save_packed(model, tmp_path / "ours", report.precisions, report.threshold)
    again = taken_in(tmp_path / "theirs", tmp_path / "again")
    found, wanted = logits(again), logits(model)
    assert np.linalg.norm(found - wanted) < 2e-2 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("kind", "granularity"),
    [
        ("tq2_0", "tensor"), ("tq2_0", "row"), ("tq1_0", "row"), ("q2_0", "tensor"),
        ("q2_0", "row"), ("q2_0", "group128"), ("i2_s", "tensor"),
    ],
)  # fmt: skip
def test_gguf_files_as_the_export_writes_them(kind: str, granularity: str, tmp_path: Path) -> None:
    ours = packed(tmp_path / "ours", granularity)
    path = tmp_path / "ours.gguf"
    write_gguf(load_packed(ours), None, path, kind, name="ours")
    same(ours, taken_in(path, tmp_path / "again"))
    manifest = json.loads((tmp_path / "again/ternary.json").read_text())
    assert manifest["threshold"]["granularity"] == granularity
    precisions = {name: entry["precision"] for name, entry in manifest["layers"].items()}
    assert precisions["model.embed_tokens"] == precisions["lm_head"] == "int8"


def test_a_vendors_older_q2_0_has_groups_of_128(tmp_path: Path) -> None:
    """The same number as Q2_0's, another block: the bytes tell which."""
    from workbench.gguf_reader import Q2_0, GgufTensor

    rng = np.random.default_rng(1)
    codes = rng.integers(-1, 2, (16, 256)).astype(np.int8)
    q = (codes + 1).astype(np.uint8).reshape(-1, 32, 4)
    scales = rng.uniform(0.01, 0.1, 32).astype("<f2")
    bits = q[..., 0] | q[..., 1] << 2 | q[..., 2] << 4 | q[..., 3] << 6
    data = np.concatenate([scales.view(np.uint8).reshape(-1, 2), bits], axis=1).reshape(-1)
    blocks = GgufTensor(Path("a.gguf"), "t", Q2_0, (16, 256), data).blocks()
    assert blocks is not None and np.array_equal(blocks.codes, codes)
    assert np.array_equal(blocks.scales.reshape(-1), scales.astype(np.float32))


def test_folders_of_the_workbench_itself(tmp_path: Path) -> None:
    ours = packed(tmp_path / "ours")
    same(ours, taken_in(ours, tmp_path / "again"))
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).eval()
    to_ternary(model)
    save_master(model, tmp_path / "master")
    again = taken_in(tmp_path / "master", tmp_path / "of_master")
    assert check_ternary(again).ok


def test_what_is_no_ready_ternary_model_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    model.save_pretrained(tmp_path / "full")
    for look in (ready_config, lambda path: load_ready_ternary(path, print)):
        with pytest.raises(ConfigError, match=r"not ternary[\s\S]*as model\.checkpoint"):
            look(tmp_path / "full")
    write_gguf(model, None, tmp_path / "full.gguf", name="full")
    with pytest.raises(ConfigError, match="not ternary"):
        ready_config(tmp_path / "full.gguf")
    with pytest.raises(ConfigError, match="is no folder"):
        load_ready_ternary(tmp_path / "nowhere", print)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t, n: t.pop(f"{n}.weight"), "has no tensor"),
        (lambda t, n: t.pop(f"{n}.weight_scale"), "no weight_scale"),
        (lambda t, n: t[f"{n}.weight"].fill_(255), "forbidden code 3"),
        (lambda t, n: t[f"{n}.weight_scale"].fill_(0), "cannot be right"),
        (lambda t, n: t.pop("model.norm.weight"), "lacks 1 tensor: model.norm.weight"),
        (lambda t, n: t.update(more=torch.ones(1)), "beyond its model"),
        (lambda t, n: t["model.norm.weight"].fill_(float("nan")), "not finite"),
    ],
)
def test_damaged_bitnet_folders_are_named(damage, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    write_bitnet_folder(load_packed(packed(tmp_path / "ours")), None, folder)
    tensors = load_file(folder / "model.safetensors")
    damage(tensors, "model.layers.0.mlp.up_proj")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=words):
        load_ready_ternary(folder, print)


def test_the_second_bonsai_generation_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(load_packed(packed(tmp_path / "ours")), None, path, "q2_0", name="Bonsai-2-27B")
    for look in (ready_config, lambda path: load_ready_ternary(path, print)):
        with pytest.raises(ConfigError, match=r"Bonsai-2-27B\) needs a Hadamard transform"):
            look(path)


def test_a_hub_that_does_not_answer_says_what_to_do(monkeypatch) -> None:
    def offline(name: str, **_: object) -> str:
        raise OSError(f"no connection for {name}")

    monkeypatch.setattr("workbench.engine.ready_ternary.snapshot_download", offline)
    with pytest.raises(ConfigError, match=r"hf:a/b cannot be had: no connection[\s\S]*folder"):
        local_path("hf:a/b")
    assert local_path("a/b") == Path("a/b")
