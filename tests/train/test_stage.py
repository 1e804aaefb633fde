"""The whole stage on a small corpus: its artefacts load, its figures say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, StageError
from workbench.pilot.sections.model import Threshold
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages import train_qat
from workbench.stages.context import StageContext
from workbench.ternary.packed import check_ternary, load_packed
from workbench.train.quality import bits_per_byte, document_losses, excerpts
from workbench.train.quiet import quiet_transformers


def make_pilot(small: SimpleNamespace, folder: Path, **train: object) -> Pilot:
    rows = [{"id": d.id, "text": d.text} for d in small.DOCUMENTS]
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"steps": 24, "batch_size": 2, "save_every": 10, "evaluations": 2, "lr": 5e-3}
    return Pilot(
        name="test",
        question="Does the stage do what it says?",
        data={
            "corpus": str(path),
            "vocab_size": 300,
            "sequence_length": small.SEQUENCE_LENGTH,
            "holdout_share": 0.3,
        },
        model={"preset": "tiny-1m", "overrides": small.SHAPE},
        train=settings | {"eval_sequences": 20} | train,
    )


def run_stage(pilot: Pilot, folder: Path) -> StageRecord:
    record = StageRecord("train_qat", folder)
    progress = Progress(folder / "events.jsonl", "train_qat")
    train_qat.run(StageContext(pilot, record, progress, {}))
    record.save()
    return record


def load_dense(folder: Path) -> PreTrainedModel:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def pilot(small: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Pilot:
    return make_pilot(small, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def judged() -> list[pd.DataFrame]:
    """The excerpts that the stage made to judge by."""
    return []


@pytest.fixture(scope="module")
def record(
    pilot: Pilot, judged: list[pd.DataFrame], tmp_path_factory: pytest.TempPathFactory
) -> StageRecord:
    def remembered(*arguments: object) -> pd.DataFrame:
        judged.append(excerpts(*arguments))
        return judged[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_qat, "excerpts", remembered)
        return run_stage(pilot, tmp_path_factory.mktemp("stage"))


def test_both_arms_were_trained_alike(record: StageRecord) -> None:
    assert record.facts["arms_equal"] == {
        "tokens": True,
        "batches": True,
        "initial_weights": True,
    }
    loss = record.table("loss")
    assert loss.groupby("arm")["tokens"].max().to_dict() == {
        "full_precision": 24 * 2 * 16,
        "ternary": 24 * 2 * 16,
    }
    assert record.metric("training_tokens").value == 24 * 2 * 16
    starts = loss[loss["step"] == 1].set_index("arm")["loss"]
    assert starts["ternary"] == starts["full_precision"], "the warm-up is full precision"


def test_every_figure_has_its_arms_and_says_how_it_was_obtained(record: StageRecord) -> None:
    for arm in ("full_precision", "ternary", "post_training"):
        final = record.metric("final_bits_per_byte", arm=arm)
        assert final.n >= 8 and final.lo <= final.value <= final.hi and final.how
    for arm in ("full_precision", "ternary"):
        assert record.metric("training_tokens_per_s", arm=arm).value > 0
        assert record.metric("training_time_s", arm=arm).value > 0
        assert "meter" in record.metric("training_energy_j", arm=arm).reason
    assert 0 < record.metric("share_zero").value < 1


def test_the_artefacts_are_the_models_that_were_judged(
    record: StageRecord, judged: list[pd.DataFrame]
) -> None:
    tokenizer = load_tokenizer(str(record.artefact("tokenizer")))
    models = {
        "full_precision": load_dense(record.artefact("full_precision")),
        "ternary": load_packed(record.artefact("ternary")),
        "post_training": load_packed(record.artefact("post_training")),
    }
    for arm, model in models.items():
        losses = document_losses(model, tokenizer, judged[0], 16)
        recorded = record.metric("final_bits_per_byte", arm=arm).value
        # the packed embedding is bf16
        assert bits_per_byte(losses) == pytest.approx(recorded, rel=2e-3), arm
    assert check_ternary(record.artefact("ternary")).ok
    assert check_ternary(record.artefact("post_training")).ok
    master = load_dense(record.artefact("ternary_master"))
    assert master.num_parameters() == models["full_precision"].num_parameters()


def test_the_tables_have_the_columns_that_the_design_names(record: StageRecord) -> None:
    columns = {
        "loss": "arm step tokens phase strength lr loss grad_norm",
        "evaluations": "arm weights step loss bits_per_byte",
        "layers": "step layer share_minus share_zero share_plus flip_rate scale",
        "histograms": "step layer kind left right count",
        "heldout": "id source text",
    }
    for table, names in columns.items():
        assert set(names.split()) <= set(record.table(table).columns), table
    judged = record.table("evaluations").groupby("arm")["weights"].unique().to_dict()
    assert set(judged["ternary"]) == {"ternary", "master"}
    assert set(judged["full_precision"]) == {"master"}


def test_the_same_pilot_gives_the_same_figures_bit_for_bit(
    pilot: Pilot, record: StageRecord, tmp_path: Path
) -> None:
    again = run_stage(pilot, tmp_path)
    for table in ("loss", "evaluations", "layers", "histograms", "heldout"):
        here, there = again.table(table), record.table(table)
        if table == "loss":
            here, there = here.drop(columns="seconds"), there.drop(columns="seconds")
        pd.testing.assert_frame_equal(here, there, check_exact=True)
    assert again.metric("final_bits_per_byte", arm="ternary") == record.metric(
        "final_bits_per_byte", arm="ternary"
    )


def test_a_second_attempt_in_the_same_folder_trains_nothing(
    pilot: Pilot, record: StageRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.train.arm.ArmTrainer.train", lambda *_, **__: pytest.fail())
    again = run_stage(pilot, record.folder)
    assert again.metrics == record.metrics


@pytest.mark.parametrize(
    ("rule", "granularity"), [("learned", "row"), ("twn", "group128"), ("absmedian", "tensor")]
)
def test_other_thresholds_and_sub_norm_go_through(
    small: SimpleNamespace, tmp_path: Path, rule: str, granularity: str
) -> None:
    pilot = make_pilot(small, tmp_path, steps=6, gradient_accumulation=2)
    model = pilot.model.model_dump() | {
        "sub_norm": True,
        "threshold": {"rule": rule, "granularity": granularity},
    }
    record = run_stage(Pilot(**pilot.model_dump() | {"model": model}), tmp_path / "run")
    assert check_ternary(record.artefact("ternary")).ok
    assert rule in record.facts["conversion"]["threshold"]


def test_evaluations_in_the_warm_up_do_not_start_learned_scales(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    pilot = make_pilot(
        small, tmp_path, steps=6, evaluations=3, threshold={"share": 0.0}, warmup={"share": 1.0}
    )
    pilot = pilot.model_copy(
        update={
            "model": pilot.model.model_copy(update={"threshold": Threshold(rule="learned")}),
        }
    )
    run_stage(pilot, tmp_path / "run")
    weights = safetensors.torch.load_file(tmp_path / "run" / "ternary_arm" / "final.safetensors")
    scales = [value for name, value in weights.items() if name.endswith(".alpha")]
    assert scales and not any(scale.any() for scale in scales)


def test_arms_that_differ_are_refused(
    pilot: Pilot, record: StageRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from workbench.stages.train_qat import build_model

    seeds = iter((1, 2))
    monkeypatch.setattr(
        "workbench.stages.train_qat.build_model",
        lambda section, vocab, context, seed, device: build_model(
            section, vocab, context, next(seeds), device
        ),
    )
    with pytest.raises(StageError, match="not trained alike"):
        run_stage(pilot, tmp_path)


def test_what_cannot_be_trained_is_refused_before_anything_starts(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    good = make_pilot(small, tmp_path)
    assert train_qat.check(good) == []
    with pytest.raises(ConfigError, match="did you mean adamw_torch"):
        train_qat.check(make_pilot(small, tmp_path, optimizer="adamw_torhc"))
    wrong = good.model_dump() | {"model": {"preset": "tiny-2n"}}
    with pytest.raises(ConfigError, match="did you mean tiny-2m"):
        train_qat.check(Pilot(**wrong))
    wrong = good.model_dump() | {"data": {"tokenizer": str(tmp_path)}}
    with pytest.raises(ConfigError, match="could not be loaded"):
        train_qat.check(Pilot(**wrong))
