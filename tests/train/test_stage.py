"""The whole stage on a small corpus: its artefacts load, its figures say what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from workbench.check.ternary import check_ternary
from workbench.data.conversation import messages_of
from workbench.data.tokenizer import load_tokenizer, train_tokenizer
from workbench.errors import ConfigError, StageError
from workbench.measure.quality import judged_excerpts
from workbench.pilot.sections.data import Data
from workbench.pilot.sections.model import Threshold
from workbench.pilot.sections.train import Train
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages import measure_ab, train_qat
from workbench.stages.context import StageContext
from workbench.ternary.manifest import Manifest
from workbench.ternary.master import NAME
from workbench.ternary.packed import load_packed
from workbench.ternary.token_counts import token_counts
from workbench.train import setup
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
        patch.setattr(setup, "excerpts", remembered)
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
        assert final.n >= 8 and final.value > 0 and "excerpts of held-out documents" in final.how
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
    int8 = Manifest.read(record.artefact("int8"))
    assert int8.named("int8") and not int8.named("ternary")
    gap = bits_per_byte(
        document_losses(load_packed(record.artefact("int8")), tokenizer, judged[0], 16)
    )
    assert gap == pytest.approx(
        record.metric("final_bits_per_byte", arm="full_precision").value, rel=0.02
    )
    assert check_ternary(record.artefact("ternary")).ok
    counted = np.bincount(np.load(record.folder / "tokens.npy"))
    for arm in ("ternary", "int8", "post_training"):
        known = token_counts(record.artefact(arm), len(counted))
        np.testing.assert_array_equal(known, counted, arm)
    assert check_ternary(record.artefact("post_training")).ok
    master = load_dense(record.artefact("ternary_master"))
    assert master.num_parameters() == models["full_precision"].num_parameters()


def test_the_tables_have_the_columns_that_the_design_names(record: StageRecord) -> None:
    columns = {
        "loss": "arm step tokens phase strength lr loss grad_norm",
        "evaluations": "arm weights step epoch loss bits_per_byte",
        "layers": "step epoch layer share_minus share_zero share_plus flip_rate scale "
        "scale_drift scale_drift_total threshold_distance grad_norm",
        "histograms": "step layer kind left right count",
        "guard": "arm step limit value factor text",
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


def test_conversations_are_learned_and_judged_by_their_answers(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    """The whole stage: both arms, the teacher, what is untrained; and what lacks a template."""
    tokenizer = train_tokenizer(small.DOCUMENTS, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "words")
    said = [("user", "assistant"), *((f"f{i}?", d.text) for i, d in enumerate(small.DOCUMENTS))]
    turns = [
        {"messages": [{"role": r, "content": c} for r, c in zip(said[0], talk, strict=True)]}
        for talk in said[1:]
    ]
    pilot = make_pilot(
        small, tmp_path, steps=4, evaluations=1, distillation={"teacher": "full_precision"}
    )
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in turns))
    text = {"corpus": pilot.data.corpus, "name": "text"}
    data = Data(
        sources=[{"corpus": str(path), "weight": 3.0, "name": "chat"}, text],
        tokenizer=str(tmp_path / "words"), sequence_length=16, holdout_share=0.3, vocab_size=300,
        max_leaked_share=1.0,
    )  # fmt: skip
    pilot = pilot.model_copy(update={"data": data})
    assert train_qat.check(pilot) == []
    record = run_stage(pilot, tmp_path / "stage")
    facts = record.facts["corpus"]
    assert 0 < facts["answer_tokens"] < facts["training_tokens"]
    for arm in ("full_precision", "ternary", "post_training"):
        final = record.metric("final_bits_per_byte", arm=arm)
        assert "of conversations the answers alone are judged, in nats and in bytes" in final.how
        assert "in the proportion of the mix" in final.how
        chat, plain = (
            record.metric("corpus_final_bits_per_byte", arm=arm, corpus=corpus)
            for corpus in ("chat", "text")
        )
        assert min(chat.value, plain.value) <= final.value <= max(chat.value, plain.value)
        assert "documents of chat, after the last step" in chat.how
    assert [part["share"] for part in facts["parts"]] == [0.75, 0.25]
    assert record.table("leaks")["share"].max() > 0.9, "the answers are the texts of the other"
    assert record.metric("leaked_share").value == record.metric("judged_leaked_share").value > 0.5
    assert record.metric("leaked_documents").value == 0
    judged = judged_excerpts(record.table("heldout"), tokenizer, 16, 9)
    losses = document_losses(load_dense(record.artefact("full_precision")), tokenizer, judged, 16)
    answers = [
        len(messages_of(row.messages)[1]["content"] if row.messages else row.text)
        for row in judged.itertuples()
    ]
    assert losses["bytes"].tolist() == answers
    without = pilot.data.model_copy(update={"tokenizer": None})
    with pytest.raises(ConfigError, match=r"chat template[\s\S]*data.conversations: plain"):
        train_qat.check(pilot.model_copy(update={"data": without}))
    plain = without.model_copy(update={"conversations": "plain"})
    assert train_qat.check(pilot.model_copy(update={"data": plain})) == []


def test_more_seeds_say_how_far_their_luck_moves_the_gap(
    pilot: Pilot, record: StageRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = pilot.train.model_copy(update={"seeds": 2})
    several = run_stage(pilot.model_copy(update={"train": train}), tmp_path)
    seeds = [str(pilot.seed), str(pilot.seed + 1)]
    gaps = [several.metric("seed_gap_bits_per_byte", seed=seed).value for seed in seeds]
    ends = {
        arm: record.metric("final_bits_per_byte", arm=arm).value
        for arm in ("full_precision", "ternary")
    }
    assert gaps[0] == pytest.approx(ends["ternary"] - ends["full_precision"])
    assert gaps[1] != gaps[0]
    over = several.metric("gap_over_seeds_bits_per_byte")
    assert over.value == pytest.approx(np.mean(gaps)) and over.n == 2
    assert set(several.table("seeds")["seed"]) == {pilot.seed, pilot.seed + 1}
    assert several.artefacts == record.artefacts
    monkeypatch.setattr("workbench.train.arm.run_training", None)
    assert run_stage(pilot.model_copy(update={"train": train}), tmp_path).metrics, "all is kept"


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
    small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from workbench.stages.train_qat_untrained import build_model

    seeds = iter((1, 2))
    monkeypatch.setattr(
        "workbench.stages.train_qat_untrained.build_model",
        lambda section, vocab, context, seed, device, say: build_model(
            section, vocab, context, next(seeds), device
        ),
    )
    with pytest.raises(StageError, match="not trained alike"):
        run_stage(make_pilot(small, tmp_path, steps=1, evaluations=1), tmp_path / "run")


def test_the_trained_baseline_teaches_and_its_cost_is_told(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    distillation = {"teacher": "full_precision", "attention_weight": 1.0}
    settings = {"distillation": distillation, "guard": {"one_value_share": 0.3}}
    record = run_stage(make_pilot(small, tmp_path, steps=6, **settings), tmp_path / "run")
    guard = record.table("guard")
    assert (guard["limit"] == "one_value_share").all() and len(guard) >= 1
    assert record.notes == [f"the guard: {text}" for text in guard["text"]]
    assert record.facts["distillation"]["teacher"] == "the trained full-precision arm of this run"
    assert record.metric("teacher_tokens", arm="ternary").value == 6 * 2 * 16
    spent = record.metric("teacher_time_s", arm="ternary")
    assert 0 < spent.value < record.metric("training_time_s", arm="ternary").value
    loss = record.table("loss").set_index("arm")
    assert loss.loc["full_precision", "teacher_kl"].isna().all()
    assert (loss.loc["ternary", "teacher_kl"] > 0).all()


def test_a_checkpoint_teaches_its_own_ternary_version(
    small: SimpleNamespace, tmp_path: Path, pilot: Pilot, record: StageRecord
) -> None:
    folder = str(record.artefact("full_precision"))
    values = make_pilot(
        small, tmp_path, steps=6, distillation={"teacher": "checkpoint"}, warmup={"share": 0.5}
    ).model_dump()
    values["model"] = {"checkpoint": folder}
    taught = run_stage(Pilot(**values), tmp_path / "run")
    assert f"the tokenizer is that of model.checkpoint {folder}" in taught.notes
    names = {run.artefact("tokenizer") / "tokenizer.json" for run in (taught, record)}
    assert len({name.read_text() for name in names}) == 1
    rows = taught.table("loss").set_index("arm").loc["ternary"]
    assert rows["teacher_kl"].iloc[0] == pytest.approx(0, abs=1e-6), "it starts as its teacher"
    assert rows["teacher_kl"].iloc[-1] > 1e-3
    assert folder in taught.facts["distillation"]["teacher"]

    values["model"]["sub_norm"] = True
    normed = run_stage(Pilot(**values), tmp_path / "normed").table("loss").set_index("arm")
    rows = normed.loc["ternary"]
    assert rows["phase"].tolist() == ["sub_norm", *["warmup"] * 3, "threshold", "finetune"]
    assert rows["teacher_kl"].iloc[0] > 1e-3, "the new norms undo what it knew"
    values["train"]["sub_norm_warmup"] = {"share": 0.6}
    with pytest.raises(ConfigError, match="exceed 1 together"):
        train_qat.check(Pilot(**values))


def test_a_master_checkpoint_goes_on_under_its_own_threshold_only(record: StageRecord) -> None:
    master = {"checkpoint": str(record.artefact("ternary_master"))}
    words = {"name": "test", "question": "Does it go on?"}
    assert train_qat.check(Pilot(**words, model=master)) == []
    other = master | {"threshold": {"granularity": "row"}}
    with pytest.raises(ConfigError, match=r"absmean/tensor\S+, but absmean/row\S+ is asked"):
        train_qat.check(Pilot(**words, model=other))


def test_a_checkpoint_that_may_not_be_read_is_the_users_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    model = {"checkpoint": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"cannot be read: .*Permission denied"):
        train_qat.check(Pilot(name="test", question="May it be read?", model=model))


@pytest.mark.parametrize("trained", ["sub_norm", "a learned threshold"])
def test_a_master_checkpoint_with_tensors_of_its_own_is_refused(
    record: StageRecord, tmp_path: Path, trained: str
) -> None:
    kept = json.loads((record.artefact("ternary_master") / NAME).read_text())
    threshold = kept["threshold"]
    if trained == "sub_norm":
        kept["sub_norm"] = True
    else:
        threshold["rule"] = "learned"
    (tmp_path / NAME).write_text(json.dumps(kept))
    model = {"checkpoint": str(tmp_path), "threshold": threshold}
    with pytest.raises(ConfigError, match=f"trained with {trained}, which adds tensors"):
        train_qat.check(Pilot(name="test", question="Does it go on?", model=model))


def test_what_cannot_be_trained_is_refused_before_anything_starts(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    good = make_pilot(small, tmp_path)
    assert train_qat.check(good) == []
    with pytest.raises(ConfigError, match="did you mean adamw_torch"):
        train_qat.check(make_pilot(small, tmp_path, optimizer="adamw_torhc"))
    with pytest.raises(ConfigError, match="checkpoint is null"):
        train_qat.check(make_pilot(small, tmp_path, distillation={"teacher": "checkpoint"}))
    with pytest.raises(ConfigError, match="attention_weight: 2, but there is no teacher"):
        train_qat.check(make_pilot(small, tmp_path, distillation={"attention_weight": 2.0}))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="int8_gradients: true, but fused kernels are for"):
            train_qat.check(make_pilot(small, tmp_path, int8_gradients=True))
    wrong = good.model_dump() | {"model": {"preset": "tiny-2n"}}
    with pytest.raises(ConfigError, match="did you mean tiny-2m"):
        train_qat.check(Pilot(**wrong))
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": "one document alone"}\n')
    with pytest.raises(ConfigError, match=r"empty\.jsonl"):
        train_qat.check(Pilot(**good.model_dump() | {"data": {"corpus": str(empty)}}))
    wrong = good.model_dump() | {"data": {"tokenizer": str(tmp_path)}}
    with pytest.raises(ConfigError, match="could not be loaded"):
        train_qat.check(Pilot(**wrong))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"overrides": {"hidden_act": "foo"}}, "KeyError.*foo"),
        ({"overrides": {"hidden_size": 0}}, "hidden_size is 0"),
        ({"policy": {"ternary": ["*.qproj"]}}, r"no layer ternary.*\n.*layers\.0\..*q_proj"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_cannot_be_is_refused_before_anything_starts(
    pilot: Pilot, model: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_qat.check(Pilot(**pilot.model_dump() | {"model": model}))


def test_rates_of_adam_beyond_their_range_are_refused() -> None:
    for betas in ([0.9, 1.5], [-0.1, 0.9], [0.9, 1.0]):
        with pytest.raises(ValidationError, match=r"betas\.[01]"):
            Train(betas=betas)


@pytest.fixture
def checkpoint(record: StageRecord, tmp_path: Path) -> Path:
    """A model with its tokenizer, to be damaged: 300 tokens, 1024 positions."""
    return shutil.copytree(record.artefact("full_precision"), tmp_path / "checkpoint")


def with_checkpoint(pilot: Pilot, folder: Path, **data: object) -> Pilot:
    values = pilot.model_dump()
    values["data"] |= data
    return Pilot(**values | {"model": {"checkpoint": str(folder)}})


def test_a_checkpoint_that_cannot_be_taken_is_refused_before_anything_starts(
    pilot: Pilot, checkpoint: Path
) -> None:
    assert train_qat.check(with_checkpoint(pilot, checkpoint)) == []
    with pytest.raises(ConfigError, match="takes 1024 positions, 2000 are asked"):
        train_qat.check(with_checkpoint(pilot, checkpoint, sequence_length=2000))
    with pytest.raises(ConfigError, match="is no folder"):
        train_qat.check(with_checkpoint(pilot, checkpoint / "config.json"))
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        train_qat.check(with_checkpoint(pilot, checkpoint.parent))
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="300 rows in its embedding, the tokenizer has 2048"):
        train_qat.check(with_checkpoint(pilot, checkpoint, vocab_size=2048))
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=300)).save_pretrained(
        checkpoint
    )
    with pytest.raises(ConfigError, match="c_attn: a Conv1D, not a linear layer"):
        train_qat.check(with_checkpoint(pilot, checkpoint))


def test_a_tokenizer_whose_ids_have_holes_needs_rows_for_the_largest(
    pilot: Pilot, checkpoint: Path
) -> None:
    path = checkpoint / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["vocab"][max(state["model"]["vocab"])] = 450
    path.write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="300 rows in its embedding, the tokenizer has 451"):
        train_qat.check(with_checkpoint(pilot, checkpoint))


def test_a_name_on_the_hub_is_checked_without_the_network(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: pytest.fail("asks the Hub"))
    there = with_checkpoint(pilot, "hf:owner/name")
    assert train_qat.check(there) == measure_ab.check(there) == []


def test_a_policy_without_a_layer_ends_before_the_first_arm_is_trained(
    pilot: Pilot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So for a model of the Hub, which no check has seen."""
    monkeypatch.setattr(train_qat, "train_arm", lambda *_: pytest.fail("trains"))
    model = pilot.model.model_dump() | {"policy": {"ternary": ["*.qproj"]}}
    with pytest.raises(ConfigError, match="no layer ternary"):
        run_stage(Pilot(**pilot.model_dump() | {"model": model}), tmp_path)


def test_requests_beyond_the_positions_of_a_checkpoint_are_refused(
    pilot: Pilot, checkpoint: Path
) -> None:
    values = with_checkpoint(pilot, checkpoint).model_dump()
    (problem,) = measure_ab.check(Pilot(**values | {"measure_ab": {"prompt_tokens": 1020}}))
    assert "allowed: 1024 together, the positions of" in problem and str(checkpoint) in problem
    (checkpoint / "config.json").unlink()
    assert measure_ab.check(Pilot(**values)) == [], "said once, by train_qat"


@pytest.mark.parametrize(("error", "advises"), [(0.012, False), (0.2, True), (float("nan"), True)])
def test_how_far_int8_gradients_err_is_recorded_and_judged(
    small: SimpleNamespace, tmp_path: Path, monkeypatch, error: float, advises: bool
) -> None:
    """The errors themselves are measured in tests/kernels_gpu/check_bitlinear.py."""
    frame = pd.DataFrame({"layer": ["up", "q", "all layers"], "error": [0.01, 0.6, error]})
    seen = []
    monkeypatch.setattr(train_qat, "gradient_errors", lambda *a: seen.append(a) or frame)
    pilot = make_pilot(small, tmp_path, int8_gradients=True, precision="bfloat16")
    record = StageRecord("train_qat", tmp_path)
    context = StageContext(pilot, record, Progress(tmp_path / "events.jsonl", "train_qat"), {})
    few = setup.TrainingSetup(pilot.train, 0, np.arange(40), 16, None, None)
    model = SimpleNamespace(device="cpu")
    table = train_qat._gradient_check(context, few, model, "before")
    ((_, ids_BT, autocast),) = seen
    assert ids_BT.tolist() == np.arange(32).reshape(2, 16).tolist() and autocast == torch.bfloat16
    assert table["moment"].eq("before").all()
    metric = record.metric("int8_gradient_error", moment="before")
    assert metric.value == (error if error == error else None)
    assert metric.n == 2 or "not finite" in metric.reason
    assert "that of q, the worst, by 60.0%" in record.notes[0]
    assert ("set train.int8_gradients to false" in record.notes[0]) == advises
