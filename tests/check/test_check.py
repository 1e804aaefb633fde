"""``workbench check``: every kind of model proved on its files, and every damage told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from workbench import cli
from workbench.check.ternary import check_ternary
from workbench.errors import ConfigError
from workbench.export.bitnet_folder import write_bitnet_folder
from workbench.export.gguf_file import write_gguf
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.master import save_master
from workbench.ternary.packed import load_packed, save_packed

SHAPE = {
    "vocab_size": 96, "hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
UP = "model.layers.0.mlp.up_proj"


def ternary_model(**threshold) -> tuple[PreTrainedModel, dict, ThresholdVersion]:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, tie_word_embeddings=True)).eval()
    version = ThresholdVersion(**threshold)
    return model, to_ternary(model, Policy(), version).precisions, version


def packed(folder: Path) -> Path:
    model, precisions, version = ternary_model()
    save_packed(model, folder, precisions, version)
    return folder


def master(folder: Path) -> Path:
    save_master(ternary_model(rule="learned", granularity="row")[0], folder)
    return folder


def bitnet(folder: Path) -> Path:
    write_bitnet_folder(load_packed(packed(folder.with_name("packed"))), None, folder)
    return folder


def online_bitnet(folder: Path) -> Path:
    """Weights that transformers makes ternary when it uses them."""
    model, _, _ = ternary_model()
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    config.quantization_config = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    config.save_pretrained(folder)
    weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors")
    return folder


def gguf(folder: Path, kind: str = "tq2_0") -> Path:
    pytest.importorskip("gguf")
    path = folder.with_suffix(".gguf")
    write_gguf(load_packed(packed(folder.with_name("packed"))), None, path, kind, name="a")
    return path


KINDS = {
    "packed": (packed, "packed folder"),
    "master": (master, "master folder"),
    "bitnet": (bitnet, "BitNet folder"),
    "online": (online_bitnet, "BitNet folder"),
    "gguf": (gguf, "GGUF file"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_is_proved(kind: str, tmp_path: Path) -> None:
    make, words = KINDS[kind]
    path = make(tmp_path / "model")
    check = check_ternary(path)
    assert check.ok, check
    assert words in check.kind and len(check.ternary) == 7
    for matrix in check.ternary:
        assert matrix.shares and sum(matrix.shares) == pytest.approx(1)
        assert all(0.1 < share < 0.7 for share in matrix.shares)
        assert matrix.scale_min and matrix.scale_min > 0
    (digest,) = check.digests.values()
    assert len(digest) == 64 and digest in str(check)


@pytest.mark.parametrize("kind", ["tq1_0", "q4_0"])
def test_gguf_shares_are_those_of_the_folder_it_came_from(kind: str, tmp_path: Path) -> None:
    path = gguf(tmp_path / "model", kind)
    wanted = {m.shape: m.shares for m in check_ternary(tmp_path / "packed").ternary}
    found = {m.shape: m.shares for m in check_ternary(path).ternary}
    for shape in {(288, 256), (256, 288)}:
        assert found[shape] == pytest.approx(wanted[shape])


def tensors(edit: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        edit(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def values(name: str, index: tuple, value: float) -> Callable[[Path], None]:
    return tensors(lambda found: found[name].__setitem__(index, value))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors" if folder.is_dir() else folder
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content)


def forbidden_block(path: Path) -> None:
    """Code 3 four times over, in the first block of a TQ2_0 matrix."""
    import gguf as package

    tensor = next(t for t in package.GGUFReader(path).tensors if "ffn_up" in t.name)
    raw = bytearray(path.read_bytes())
    raw[int(tensor.data_offset)] = 0xFF
    path.write_bytes(raw)


def endless_scale(path: Path) -> None:
    import gguf as package

    tensor = next(t for t in package.GGUFReader(path).tensors if "ffn_up" in t.name)
    raw, end = bytearray(path.read_bytes()), int(tensor.data_offset) + 66
    raw[end - 2 : end] = np.float16("inf").tobytes()
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("kind", "damage", "words"),
    [
        ("packed", values(f"{UP}.codes", (7, 3), 0xFF), "forbidden code 3 in row 7"),
        ("packed", values(f"{UP}.scale", (0,), float("inf")), "not finite and above 0"),
        ("packed", values("model.norm.weight", (0,), float("nan")), "norm.weight holds values"),
        ("packed", tensors(lambda t: t.pop("model.norm.weight")), "lacks 1 tensor"),
        ("packed", tensors(lambda t: t.update(more=torch.ones(1))), "beyond its model"),
        ("packed", text("ternary.json", "{"), "ternary.json cannot be read"),
        ("packed", text("config.json", "{}"), "config.json"),
        ("packed", cut, "model.safetensors cannot be read"),
        ("master", values(f"{UP}.weight", (0, 0), float("nan")), "up_proj.weight holds values"),
        ("master", tensors(lambda t: t.pop(f"{UP}.weight")), "cannot be loaded"),
        ("master", cut, "model.safetensors cannot be read"),
        ("bitnet", values(f"{UP}.weight", (3, 3), 0xFF), "up_proj.weight holds the forbidden"),
        ("bitnet", values(f"{UP}.weight_scale", (0,), 0.0), "cannot be right"),
        ("bitnet", tensors(lambda t: t.pop(f"{UP}.weight_scale")), "no weight_scale"),
        ("bitnet", tensors(lambda t: t.pop(f"{UP}.weight")), "up_proj.weight is missing"),
        (
            "bitnet",
            tensors(lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"][:-1].clone()})),
            "up_proj.weight is [71, 256], not [72, 256]",
        ),
        ("bitnet", cut, "cannot be read"),
        ("bitnet", text("config.json", "{"), "config.json cannot be read"),
        ("online", values(f"{UP}.weight", (0, 0), float("inf")), "up_proj.weight holds values"),
        ("gguf", forbidden_block, "holds a code that is not -1, 0 or +1"),
        ("gguf", endless_scale, "holds a scale that is not finite"),
        ("gguf", cut, "cut off or damaged"),
    ],
)
def test_what_is_damaged_is_named(kind, damage, words, tmp_path, monkeypatch, capsys) -> None:
    path = KINDS[kind][0](tmp_path / "model")
    damage(path)
    monkeypatch.setattr(sys, "argv", ["workbench", "check", str(path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 3 and not out
    assert words in err and "NOT a sound ternary model" in err and "Traceback" not in err


def adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ternary.json").write_text('{"kind": "adapter", "format": 1}')
    return folder


def full_precision(folder: Path, **quantization) -> Path:
    config = LlamaConfig(**SHAPE)
    if quantization:
        config.quantization_config = quantization
    config.save_pretrained(folder)
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def other_file(folder: Path) -> Path:
    folder.write_text("weights")
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder, "does not exist"),
        (empty, "has no config.json"),
        (other_file, "does not end in .gguf"),
        (adapter, "kind 'adapter'"),
        (full_precision, "in full precision"),
        (lambda folder: full_precision(folder, quant_method="gptq", bits=4), "quantised with gptq"),
    ],
)
def test_what_is_another_thing_is_refused(make, words, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["workbench", "check", str(make(tmp_path / "it"))])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert words in err and "allowed: a packed folder" in err


def test_json_is_one_object(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["workbench", "check", str(packed(tmp_path / "p")), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert not ended.value.code and found["ok"] and len(found["matrices"]) == 8


def test_gguf_without_its_package_says_what_to_install(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("workbench.gguf_reader.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"\.\[export\]"):
        check_ternary(tmp_path / "a.gguf")
