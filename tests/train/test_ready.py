"""Arms without training: a ready ternary model beside its full-precision sibling, and a checkpoint
as it came beside what was trained from it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from workbench.check.ternary import check_ternary
from workbench.data.document import Document
from workbench.data.tokenizer import train_tokenizer
from workbench.errors import ConfigError, StageError
from workbench.export.bitnet_folder import write_bitnet_folder
from workbench.export.gguf_file import write_gguf
from workbench.pilot.resolve import resolve
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages import hybrid_plan, measure_ab, train_qat
from workbench.stages.context import StageContext
from workbench.ternary import to_ternary
from workbench.ternary.manifest import Manifest
from workbench.ternary.packed import load_packed, save_packed

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


def stage(module, pilot: Pilot, folder: Path, *upstream: StageRecord) -> StageRecord:
    name = module.__name__.rpartition(".")[2]
    record = StageRecord(name, folder)
    folder.mkdir(exist_ok=True)
    progress = Progress(folder / "events.jsonl", name)
    module.run(StageContext(pilot, record, progress, {each.stage: each for each in upstream}))
    record.save()
    return record


@pytest.fixture(scope="module")
def models(small: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A full-precision folder, and the same weights made ternary: a BitNet folder and a GGUF."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(small.DOCUMENTS, 300)
    torch.manual_seed(7)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**SHAPE, vocab_size=len(tokenizer) + 4, pad_token_id=None, **ids)
    model = AutoModelForCausalLM.from_config(config)
    for kind in ("full", "full without tokenizer"):
        model.save_pretrained(folder / kind)
    tokenizer.save_pretrained(folder / "full")
    report = to_ternary(model)
    save_packed(model, folder / "packed", report.precisions, report.threshold, tokenizer)
    write_bitnet_folder(load_packed(folder / "packed"), tokenizer, folder / "bitnet")
    write_gguf(load_packed(folder / "packed"), tokenizer, folder / "a.gguf", "q2_0", name="a")
    corpus = folder / "corpus.jsonl"
    rows = [{"id": d.id, "text": d.text} for d in small.DOCUMENTS]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SimpleNamespace(folder=folder, corpus=corpus)


def pilot_of(models: SimpleNamespace, ternary: str = "bitnet", **model: object) -> Pilot:
    """``pilots/ready_ternary.yaml`` with these models."""
    folder = models.folder
    values = resolve(
        "workbench:ready_ternary",
        [
            f"model.checkpoint={folder / 'full'}", f"model.ternary={folder / ternary}",
            f"data.corpus={models.corpus}", "data.sequence_length=32", "data.holdout_share=0.3",
            "hybrid_plan.sequences=4",
        ],
    ).values  # fmt: skip
    return Pilot(**values | {"model": values["model"] | model})


@pytest.mark.parametrize("kind", ["bitnet", "a.gguf"])
def test_a_ready_model_is_the_ternary_arm_and_nothing_is_trained(
    models: SimpleNamespace, tmp_path: Path, kind: str
) -> None:
    pilot = pilot_of(models, kind)
    assert train_qat.check(pilot) == [] and measure_ab.check(pilot) == []
    record = stage(train_qat, pilot, tmp_path / "train")
    assert set(record.artefacts) == {
        "tokenizer", "full_precision", "int8", "int4", "post_training", "ternary",
    }  # fmt: skip
    assert check_ternary(record.artefact("ternary")).ok
    ours, theirs = (load_packed(f) for f in (record.artefact("ternary"), models.folder / "packed"))
    name = "model.layers.1.mlp.down_proj"
    assert torch.equal(ours.get_submodule(name).codes, theirs.get_submodule(name).codes)
    full = AutoModelForCausalLM.from_pretrained(record.artefact("full_precision"))
    as_it_was = AutoModelForCausalLM.from_pretrained(models.folder / "full")
    pairs = zip(full.parameters(), as_it_was.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert record.metric("training_tokens") is None and "loss" not in record.tables
    share = record.metric("ternary_share", arm="ternary")
    assert share.value > 0.99 and share.basis == "exact"
    judged = {m.labels["arm"] for m in record.metrics if m.name == "final_bits_per_byte"}
    assert judged == {"full_precision", "post_training", "ternary"}
    assert any("nothing is trained" in note for note in record.notes)

    planned = stage(hybrid_plan, pilot, tmp_path / "hybrid", record)
    assert set(planned.table("candidates")["base"]) == {"full_precision", "ternary"}
    assert check_ternary(planned.artefact("hybrid")).matrices
    layers = {m.labels["precision"]: m.value for m in planned.metrics if m.name == "layers"}
    assert sum(layers.values()) == len(Manifest.read(record.artefact("ternary")).named("ternary"))


def test_what_a_ready_model_needs_beside_it_is_said_before_anything_starts(
    models: SimpleNamespace,
) -> None:
    with pytest.raises(ConfigError, match=r"without model\.checkpoint[\s\S]*compared with"):
        train_qat.check(pilot_of(models, checkpoint=None))
    bare = str(models.folder / "full without tokenizer")
    with pytest.raises(ConfigError, match="knows the tokens it was trained with alone"):
        train_qat.check(pilot_of(models, checkpoint=bare))
    with pytest.raises(ConfigError, match="is not ternary"):
        train_qat.check(pilot_of(models, "full"))
    with pytest.raises(ConfigError, match="takes 256 positions, 512 are asked"):
        values = pilot_of(models).model_dump()
        train_qat.check(Pilot(**values | {"data": values["data"] | {"sequence_length": 512}}))


def test_a_ready_model_that_reads_other_tokens_is_refused(
    models: SimpleNamespace, tmp_path: Path
) -> None:
    other = train_tokenizer([Document("a", "b", "quite another text, again and again " * 9)], 290)
    write_bitnet_folder(load_packed(models.folder / "packed"), other, models.folder / "other")
    with pytest.raises(StageError, match=r"reads other tokens than the pilot's tokenizer"):
        stage(train_qat, pilot_of(models, "other"), tmp_path / "train")


def test_a_checkpoint_as_it_came_is_an_arm_beside_what_was_trained_from_it(
    models: SimpleNamespace, tmp_path: Path
) -> None:
    values = pilot_of(models).model_dump()
    values["model"]["ternary"] = None
    values["train"] |= {"steps": 4, "batch_size": 2, "evaluations": 1, "eval_sequences": 8}
    del values["measure_ab"]["arms"]
    pilot = Pilot(**values)
    assert pilot.measure_ab.own_arms == [
        "full_precision", "ternary", "post_training", "int8", "int4", "checkpoint",
    ]  # fmt: skip
    record = stage(train_qat, pilot, tmp_path / "train")
    came, trained, before = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (
            record.artefact("checkpoint"), record.artefact("full_precision"),
            models.folder / "full",
        )
    )  # fmt: skip
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(came[name], before[name]) and not torch.equal(trained[name], before[name])
    assert AutoTokenizer.from_pretrained(record.artefact("checkpoint")).eos_token_id is not None
    int8 = load_packed(record.artefact("int8")).get_submodule(name.removesuffix(".weight"))
    error = (int8.dequantize() - before[name]).abs().max()
    assert error < (int8.dequantize() - trained[name]).abs().max(), "of today's model"
    bits = {m.labels["arm"]: m.value for m in record.metrics if m.name == "final_bits_per_byte"}
    assert bits["full_precision"] < bits["checkpoint"]


def test_the_checkpoint_is_an_arm_only_where_one_is_trained() -> None:
    plain = Pilot(name="a", question="?")
    assert "checkpoint" not in plain.measure_ab.own_arms
    asked = {"arms": ["full_precision", "checkpoint"]}
    (problem,) = measure_ab.check(Pilot(name="a", question="?", measure_ab=asked))
    assert "checkpoint is model.checkpoint as it came, and model.checkpoint is null" in problem
    own = Pilot(name="a", question="?", model={"checkpoint": "hf:a/b"}, measure_ab={"blocks": 3})
    assert "checkpoint" in own.measure_ab.own_arms and own.measure_ab.blocks == 3
    ready = {"checkpoint": "hf:a/b", "ternary": "hf:a/c"}
    assert "checkpoint" not in Pilot(name="a", question="?", model=ready).measure_ab.own_arms


def test_losses_of_a_ready_model_worse_than_chance_are_said(
    models: SimpleNamespace, tmp_path: Path, monkeypatch
) -> None:
    """As of a file whose format leaves out a transform."""
    monkeypatch.setattr("workbench.stages.train_qat_ready.bits_per_byte", lambda _: 11.5)
    record = stage(train_qat, pilot_of(models), tmp_path / "train")
    assert any("11.5 bits per byte" in note and "gibberish" in note for note in record.notes)
    assert isinstance(record.table("heldout"), pd.DataFrame)
