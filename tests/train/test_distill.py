"""What a teacher adds to the objective, written out; that it is frozen, counted and resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch.distributions import Categorical, kl_divergence
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from workbench.data.dataset import UNJUDGED, PackedSequences
from workbench.data.mix import TokenPart
from workbench.errors import ConfigError
from workbench.pilot.sections.train import Distillation, Train
from workbench.train.arm import FINAL, train_arm
from workbench.train.distill import (
    Teacher,
    attention_projections,
    logits_divergence,
    relation_divergence,
)
from workbench.train.setup import TrainingSetup
from workbench.train.telemetry import Telemetry

BOTH = {"teacher": "full_precision", "alpha": 0.25, "temperature": 2.0, "attention_weight": 3.0}


@pytest.fixture(scope="module")
def teacher(small: SimpleNamespace) -> PreTrainedModel:
    """Another model of the students' shape; what it was trained on does not matter here."""
    model = small.make_model("full_precision", small.make_setup())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def train(
    small: SimpleNamespace,
    setup: TrainingSetup,
    folder: Path,
    teacher: PreTrainedModel | None,
    stop_at: int | None = None,
) -> pd.DataFrame:
    progress = small.StoppingProgress(folder / "events.jsonl", "train_qat")
    progress.stop_at = stop_at
    model = small.make_model("ternary", setup)
    return train_arm("ternary", model, setup, folder, progress, teacher).telemetry.frame("loss")


@pytest.mark.parametrize("rows_at_once", [1, 2, 99])
def test_the_divergence_of_logits_is_that_of_the_distributions(monkeypatch, rows_at_once) -> None:
    monkeypatch.setattr("workbench.train.distill.LOGITS_AT_ONCE", rows_at_once * 11)
    generator = torch.Generator().manual_seed(0)
    student, taught = (torch.randn(2, 5, 11, generator=generator) * 3 for _ in range(2))
    student.requires_grad_()
    for temperature in (1.0, 2.5):
        written_out = kl_divergence(
            Categorical(logits=taught / temperature), Categorical(logits=student / temperature)
        ).mean()
        got = logits_divergence(student, taught, temperature)
        torch.testing.assert_close(got, written_out)
        wanted, found = (torch.autograd.grad(3 * each, student)[0] for each in (written_out, got))
        torch.testing.assert_close(found, wanted)
    assert logits_divergence(taught, taught, 1.0) == 0


def test_a_batch_without_a_judged_token_teaches_nothing() -> None:
    none = torch.zeros(1, 0, 11, requires_grad=True)
    assert logits_divergence(none, none.detach(), 1.0) == 0


def test_relations_compare_positions_head_by_head_whatever_the_width() -> None:
    generator = torch.Generator().manual_seed(0)
    B, T, H = 2, 5, 3
    student, taught = (torch.randn(B, T, H * d, generator=generator) for d in (4, 6))
    total = 0.0
    for b in range(B):
        for h in range(H):
            rows = []
            for states, d in ((taught, 4 + 2), (student, 4)):
                head = states[b, :, h * d : (h + 1) * d]
                rows.append(Categorical(logits=head @ head.T / d**0.5))
            total += kl_divergence(*rows).sum()
    got = relation_divergence(student, taught, H)
    torch.testing.assert_close(got, total / (B * H * T))
    with torch.autocast("cpu", torch.bfloat16):
        assert relation_divergence(student, taught, H) == got, "float32 whatever the training is"


def test_the_objective_is_the_declared_mixture_and_the_loss_stays_comparable(
    small: SimpleNamespace, teacher: PreTrainedModel, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    rows = train(small, small.make_setup(steps=4, distillation=BOTH), tmp_path / "a", teacher)
    mixture = 0.75 * rows["loss"] + 0.25 * 4 * rows["teacher_kl"] + 3 * rows["relations"]
    assert rows["objective"].to_numpy() == pytest.approx(mixture.to_numpy(), rel=1e-5)
    assert (rows[["teacher_kl", "relations", "teacher_seconds"]] > 0).all().all()
    assert rows["teacher_tokens"].tolist() == [2 * 16] * 4
    alone = train(small, small.make_setup(steps=4), tmp_path / "b", None)
    assert rows["loss"].iloc[0] == alone["loss"].iloc[0], "the same model on the same batch"
    assert rows["loss"].iloc[3] != alone["loss"].iloc[3], "it learned from something else"
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher(input_ids=torch.zeros(1, 2, dtype=torch.long)).past_key_values is None


@pytest.mark.parametrize("term", ["teacher_kl", "relations"])
def test_a_student_comes_closer_to_its_teacher(
    small: SimpleNamespace, teacher: PreTrainedModel, tmp_path: Path, term: str
) -> None:
    only = {"teacher_kl": {"alpha": 1.0}, "relations": {"alpha": 0.0, "attention_weight": 9.0}}
    setup = small.make_setup(
        steps=30, lr=5e-3, evaluations=1, distillation={"teacher": "full_precision"} | only[term]
    )
    rows = train(small, setup, tmp_path, teacher)
    assert rows[term].iloc[-5:].mean() < 0.9 * rows[term].iloc[:5].mean()


def answers_of(setup: TrainingSetup) -> TrainingSetup:
    """As of two corpora of conversations: sequences with few and with many judged tokens, and some
    with none."""
    generator, end = np.random.default_rng(5), len(setup.tokens)
    shares = np.repeat(generator.choice([0.0, 0.1, 0.9], end // 16 + 1), 16)
    parts = (TokenPart("a", 0.75, 0, end // 2), TokenPart("b", 0.25, end // 2, end))
    return replace(setup, judged=generator.random(end) < shares[:end], parts=parts)


@pytest.mark.parametrize("of", [lambda setup: setup, answers_of], ids=["text", "answers"])
def test_accumulated_batches_have_the_objective_of_one_large_batch(
    small: SimpleNamespace, teacher: PreTrainedModel, tmp_path: Path, of
) -> None:
    whole = {"steps": 3, "batch_size": 4, "distillation": BOTH}
    parts = whole | {"batch_size": 1, "gradient_accumulation": 4, "gradient_checkpointing": True}
    one = train(small, of(small.make_setup(**whole)), tmp_path / "one", teacher)
    four = train(small, of(small.make_setup(**parts)), tmp_path / "four", teacher)
    mixture = 0.75 * four["loss"] + 0.25 * 4 * four["teacher_kl"] + 3 * four["relations"]
    assert four["objective"].to_numpy() == pytest.approx(mixture.to_numpy(), rel=1e-4)
    for column in ("loss", "objective", "teacher_kl", "relations", "grad_norm"):
        assert four[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=2e-3), column


def test_the_teacher_is_heard_where_the_loss_counts(
    small: SimpleNamespace, teacher: PreTrainedModel
) -> None:
    setup = answers_of(small.make_setup())
    batch = [PackedSequences(setup.tokens, 16, 9, 1, judged=setup.judged)[i] for i in range(9)]
    ids, labels = (torch.stack([item[name] for item in batch]) for name in ("input_ids", "labels"))
    logits = torch.randn(*ids.shape, teacher.config.vocab_size, generator=torch.manual_seed(1))
    heard = Teacher(teacher, Distillation(alpha=1.0))
    got = heard.extra_loss(ids, logits, {}, labels != UNJUDGED)
    taught = teacher(input_ids=ids).logits
    each = kl_divergence(Categorical(logits=taught), Categorical(logits=logits))[:, :-1]
    torch.testing.assert_close(got, each[labels[:, 1:] != UNJUDGED].mean())


def test_a_distilled_training_resumes_bit_for_bit(
    small: SimpleNamespace, teacher: PreTrainedModel, tmp_path: Path
) -> None:
    setup = answers_of(small.make_setup(steps=12, distillation=BOTH))
    straight = train(small, setup, tmp_path / "straight", teacher)
    with pytest.raises(small.Stopped):
        train(small, setup, tmp_path / "killed", teacher, stop_at=7)
    assert len(Telemetry(tmp_path / "killed" / "telemetry", 10**9).frame("loss")) == 7
    resumed = train(small, setup, tmp_path / "killed", teacher)
    times = ["seconds", "teacher_seconds"]
    pd.testing.assert_frame_equal(
        straight.drop(columns=times), resumed.drop(columns=times), check_exact=True
    )
    finals = [(tmp_path / name / FINAL).read_bytes() for name in ("straight", "killed")]
    assert finals[0] == finals[1]


def test_what_cannot_be_distilled_is_refused(teacher: PreTrainedModel) -> None:
    assert len(attention_projections(teacher, -1)) == 3
    with pytest.raises(ConfigError, match="got 2, the model has 2 layers"):
        Teacher(teacher, Distillation(attention_weight=1.0, attention_layer=2))
    fused = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=20))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no layers with q_proj"):
        Teacher(fused, Distillation(attention_weight=1.0))
    with pytest.raises(ValidationError, match="compile hides the states"):
        Train(compile=True, distillation=Distillation(attention_weight=1.0))
