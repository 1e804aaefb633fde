"""``workbench export`` from a folder and from a run, and what it refuses before it starts."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.errors import ConfigError, StageError
from workbench.export import command
from workbench.export.command import export_command
from workbench.gguf_reader import require_gguf
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.model import Policy
from workbench.records.run import open_run
from workbench.records.stage_record import StageRecord
from workbench.roadmap import STAGES
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.master import save_master


def test_a_folder_becomes_a_file_whose_path_comes_last(packed, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "small.gguf"
    export_command(packed(), out)
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "10 TQ2_0" in said.err and "float16" in said.err
    fields = gguf.GGUFReader(out).fields
    assert fields["general.name"].contents() == "llama-tensor"
    description = fields["general.description"].contents()
    assert "12 ternary" in description and "absmean/tensor" in description
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"


def test_a_name_without_gguf_becomes_a_folder(packed, tmp_path: Path, capsys) -> None:
    out = tmp_path / "small"
    out.mkdir()
    export_command(packed(), out, tokenizer=False)
    assert (out / "config.json").is_file() and not (out / "tokenizer.json").exists()
    assert "12 ternary layers packed" in capsys.readouterr().err


def test_an_onnx_file_says_what_it_holds(packed, tmp_path: Path, capsys) -> None:
    onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
    out = tmp_path / "small.onnx"
    export_command(packed(), out)
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "12 of 2 bits, 2 of 8 bits" in said.err and "tokenizer is no part of it" in said.err
    model = onnx.load(out)
    onnx.checker.check_model(model)
    assert model.graph.name == "llama-tensor" and "12 ternary" in model.doc_string


@pytest.fixture
def run(packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run whose hybrid_plan is not finished."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    pilot = tmp_path / "mine.yaml"
    pilot.write_text("name: mine\nquestion: Does it?\n")
    run = open_run(resolve(pilot))
    folder = run.stage_folder("train_qat")
    folder.mkdir(parents=True)
    packed().rename(folder / "ternary")
    StageRecord("train_qat", folder, artefacts={"ternary": "ternary"}).save()
    return run


def test_an_arm_of_a_run(run, tmp_path: Path, capsys) -> None:
    export_command(Path("mine"), tmp_path / "mine.gguf", arm="ternary", tokenizer=False)
    fields = gguf.GGUFReader(tmp_path / "mine.gguf").fields
    assert fields["general.name"].contents() == f"{run.name} ternary"
    assert fields["tokenizer.ggml.model"].contents() == "none"
    with pytest.raises(StageError, match=r"no finished hybrid_plan[\s\S]*another --arm"):
        export_command(Path("mine"), tmp_path / "b.gguf")


def test_an_arm_that_an_older_run_does_not_have(run, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no arm int8[\s\S]*allowed: ternary\n"):
        export_command(Path("mine"), tmp_path / "a.gguf", arm="int8")


@pytest.mark.parametrize("name", ["file/a.gguf", "file/a", "n" * 300 + ".gguf"])
def test_a_place_that_cannot_be_written_is_named(packed, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: "):
        export_command(packed(), tmp_path / name, tokenizer=False)


def test_nothing_that_exists_is_replaced(packed, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for name in ("a.gguf", "full"):
        with pytest.raises(ConfigError, match=f"{name} exists"):
            export_command(packed(), tmp_path / name)


def test_an_ending_that_is_none_is_refused(packed, tmp_path: Path) -> None:
    for name, hint in (("foo.bar", ""), ("foo.ggfu", "; did you mean .gguf?")):
        with pytest.raises(
            ConfigError, match=rf"no ending of a file that is written{hint}"
        ) as said:
            export_command(packed(), tmp_path / name, tokenizer=False)
        assert "mkdir" in str(said.value) and not (tmp_path / name).exists()
    (tmp_path / "foo.bar").mkdir()
    for name in ("foo.bar", "model-1.5"):
        export_command(packed(), tmp_path / name, tokenizer=False)
        assert (tmp_path / name / "config.json").is_file()


def test_what_would_be_ignored_is_refused(packed, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--arm ternary of .*one model and no run"):
        export_command(packed(), tmp_path / "a.gguf", arm="ternary")
    with pytest.raises(ConfigError, match=r"--type q2_0 for the Hugging Face folder"):
        export_command(packed(), tmp_path / "a", kind="q2_0")
    with pytest.raises(ConfigError, match=r"--type q2_0 for the file [\s\S]*ends in .gguf"):
        export_command(packed(), tmp_path / "a.onnx", kind="q2_0")
    with pytest.raises(ConfigError, match=r"--rest-bits 4 for the file"):
        export_command(packed(), tmp_path / "a.gguf", rest_bits=4)


def test_master_weights_are_refused(packed, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=1, vocab_size=32)
    model = AutoModelForCausalLM.from_config(config)
    to_ternary(model, Policy(), ThresholdVersion())
    save_master(model, tmp_path / "master")
    with pytest.raises(ConfigError, match=r"master weights[\s\S]*--arm ternary"):
        export_command(tmp_path / "master", tmp_path / "a.gguf")


def test_without_the_gguf_package_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.gguf_reader.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"package gguf[\s\S]*\[export\]"):
        require_gguf()


def test_every_arm_comes_from_a_stage_of_the_roadmap() -> None:
    assert set(command.ARMS.values()) <= set(STAGES)
