"""The hybrid trained with its plan in place: plan, training, packed layers, the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import workbench.stages.hybrid_plan as hybrid_plan
from workbench.data.dataset import write_tokens
from workbench.data.document import Document
from workbench.data.tokenizer import load_tokenizer
from workbench.engine.engine import Engine
from workbench.errors import StageError
from workbench.hybrid.latency import unit_seconds
from workbench.pilot.sections.data import Data
from workbench.pilot.sections.hybrid_plan import HybridPlan
from workbench.pilot.sections.model import Model, Policy
from workbench.pilot.sections.train import Train
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.stages.hybrid_plan_trained import RATIO, compare_with_patched, plans_first, policy_of
from workbench.ternary.manifest import Manifest
from workbench.ternary.packed import load_packed

SECTION = {"sequences": 6, "granularity": "block", "when": "before_training"}


def context(trained: StageRecord, folder: Path, **section) -> StageContext:
    folder.mkdir(exist_ok=True)
    overrides = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    pilot = Pilot(
        name="small",
        question="which layers stay precise?",
        data=Data(sequence_length=32),
        model=Model(preset="tiny-1m", overrides=overrides),
        train=Train(steps=6, batch_size=2, evaluations=1, eval_sequences=2),
        hybrid_plan=HybridPlan(**SECTION | section),
    )
    progress = Progress(folder / "events.jsonl", "hybrid_plan")
    return StageContext(pilot, StageRecord("hybrid_plan", folder), progress, {"train_qat": trained})


@pytest.fixture(scope="module")
def with_tokens(trained) -> StageRecord:
    tokenizer = load_tokenizer(str(trained.artefact("tokenizer")))
    documents = [
        Document(f"doc{i}", "made", t) for i, t in enumerate(trained.table("heldout")["text"])
    ]
    write_tokens(trained.folder / "tokens.npy", tokenizer, documents)
    return trained


@pytest.fixture(scope="module")
def planned(with_tokens, tmp_path_factory) -> StageRecord:
    of = context(with_tokens, tmp_path_factory.mktemp("planned"), max_size_ratio=0.4)
    hybrid_plan.run(of)
    return of.record


def test_the_packed_hybrid_has_the_plans_layers(with_tokens, planned) -> None:
    manifest = Manifest.read(planned.artefact("hybrid"))
    layers = Manifest.read(with_tokens.artefact("ternary")).named("ternary")
    plan = planned.table("plan")
    for row in plan.itertuples():
        own = [name for name in layers if name.startswith(row.layer)]
        assert {manifest.layers[name].precision for name in own} == {row.precision}
    assert planned.metric("hybrid_size_ratio").value <= 0.4
    assert set(planned.table("sensitivity")["base"]) == {"trained"}
    assert planned.facts["plan_before_training"]["bound"] <= plan["quality_loss"].sum() + 1e-9


def test_it_is_trained_and_compared_with_the_patched_one_on_fresh_text(planned) -> None:
    assert len(planned.table("hybrid_loss")) == 6
    rows = planned.table("hybrid_quality")
    assert set(rows["arm"]) == {"full_precision", "patched", "trained"}
    assert planned.metric(RATIO) is not None
    assert planned.facts["limit"]["outcome"] in ("held", "broken", "undecided")
    assert any("on fresh text" in note for note in planned.notes)
    chosen = {row["id"].partition("@")[0] for row in rows.to_dict("records")}
    assert chosen <= {f"held{i}" for i in range(1, 20, 2)}, "none that the plan was chosen by"


def test_a_killed_training_is_not_repeated(with_tokens, planned, tmp_path, monkeypatch) -> None:
    of = context(with_tokens, planned.folder, max_size_ratio=0.4)
    lines = (planned.folder / "evaluations.jsonl").read_text().splitlines()
    hybrid_plan.run(of)
    assert of.record.metrics == planned.metrics, "from what lies in the folder"
    assert (planned.folder / "evaluations.jsonl").read_text().splitlines() == lines
    assert {json.loads(line)["base"] for line in lines} == {"full_precision", "checkpoint"}


def test_time_is_a_budget(with_tokens, tmp_path) -> None:
    of = context(with_tokens, tmp_path / "s", max_latency_ratio=1e-6)
    hybrid_plan.run(of)
    assert any("no plan keeps the budget" in note for note in of.record.notes)
    assert set(of.record.table("plan")["precision"]) == {"ternary"}


def test_the_products_of_each_layer_are_timed(with_tokens, tmp_path) -> None:
    base = hybrid_plan._open_base(
        context(with_tokens, tmp_path / "s"), with_tokens, "full_precision"
    )
    found = unit_seconds(base, ["ternary", "high_precision"], repetitions=3)
    assert set(found) == {(u, p) for u in base.units for p in ("ternary", "high_precision")}
    assert all(0 < seconds < 1 for seconds in found.values())


def test_without_the_tokens_it_says_what_to_do(trained, tmp_path) -> None:
    of = context(trained, tmp_path / "s")
    kept = trained.folder / "tokens.npy"
    aside = kept.with_suffix(".aside")
    if kept.exists():
        kept.rename(aside)
    try:
        with pytest.raises(StageError, match="after_training"):
            hybrid_plan.run(of)
    finally:
        if aside.exists():
            aside.rename(kept)


def test_where_the_plan_comes_first(trained, tmp_path) -> None:
    assert plans_first(context(trained, tmp_path / "a"), trained)
    assert not plans_first(context(trained, tmp_path / "b", when=None), trained), "no checkpoint"
    ready = StageRecord("train_qat", tmp_path, artefacts={"ternary": "ternary"})
    assert not plans_first(context(trained, tmp_path / "c"), ready)


def test_a_budget_that_int8_keeps_leaves_nothing_to_train_and_is_no_failure(
    with_tokens, tmp_path
) -> None:
    of = context(with_tokens, tmp_path / "s", max_size_ratio=0.9, precisions=["ternary", "int8"])
    hybrid_plan.run(of)
    assert set(of.record.table("candidates")["base"]) == {"full_precision", "ternary"}
    assert of.record.artefact("hybrid").is_dir() and "hybrid_training" not in of.record.facts
    assert "lower hybrid_plan.max_size_ratio" in (tmp_path / "s" / "events.jsonl").read_text()


def test_int4_layers_are_trained_precise_rounded_when_packed_and_run_in_the_engine(
    with_tokens, tmp_path
) -> None:
    of = context(with_tokens, tmp_path / "s", max_size_ratio=0.25, precisions=["ternary", "int4"])
    hybrid_plan.run(of)
    assert set(of.record.table("plan")["precision"]) == {"ternary", "int4"}, "a block each"
    hybrid = of.record.artefact("hybrid")
    manifest = Manifest.read(hybrid)
    assert len(manifest.named("int4")) == len(manifest.named("ternary")) == 7
    prompt = list(range(5, 25))
    with torch.no_grad():
        expected = load_packed(hybrid)(torch.tensor([prompt])).logits[0]
    with Engine.load(hybrid, kv_dtype="float32") as engine:
        found = torch.as_tensor(engine.logits(prompt))
    assert float((found - expected).abs().max() / expected.abs().max()) < 3e-2


def test_the_policy_names_the_layers_and_keeps_the_rest() -> None:
    planned = {"a.q_proj": "ternary", "a.k_proj": "int8", "b": "high_precision", "c": "int4"}
    policy = policy_of(Policy(), planned)
    assert policy.ternary == ["a.q_proj"] and policy.high_precision == ["b", "c"]
    assert policy.int8 == [*Policy().int8, "a.k_proj"]


def test_the_ratio_of_gaps_on_the_same_documents(tmp_path) -> None:
    random = np.random.default_rng(0)
    size = random.integers(300, 900, 80)
    easy = random.gamma(4, 0.5, 80)
    losses = {
        arm: pd.DataFrame({"id": [f"d{i}@0" for i in range(80)], "source": "made", "bytes": size,
                           "nats": np.log(2) * size * (easy + gap * random.uniform(0.8, 1.2, 80))})
        for arm, gap in (("full_precision", 0.0), ("patched", 0.4), ("trained", 0.1))
    }  # fmt: skip
    record = StageRecord("hybrid_plan", tmp_path)
    compare_with_patched(record, losses)
    found = record.metric(RATIO)
    assert found.value == pytest.approx(0.25, abs=0.03) and found.lo < 0.25 < found.hi < 0.5


def test_of_a_checkpoint_its_own_layers_are_planned_and_its_recipe_trains(
    with_tokens, tmp_path
) -> None:
    came = with_tokens.artefact("full_precision")
    trained = StageRecord(
        "train_qat", with_tokens.folder, tables=with_tokens.tables,
        artefacts={**with_tokens.artefacts, "checkpoint": "full_precision"},
    )  # fmt: skip
    of = context(trained, tmp_path / "s", when=None, max_size_ratio=0.4)
    asked = {"checkpoint": str(came), "threshold": {"granularity": "row"}}
    teach = {"steps": 4, "batch_size": 2, "evaluations": 1, "eval_sequences": 2,
             "distillation": {"teacher": "checkpoint"}}  # fmt: skip
    pilot = of.pilot.model_copy(
        update={"model": Model.model_validate(asked), "train": Train.model_validate(teach)}
    )
    hybrid_plan.run(StageContext(pilot, of.record, of.progress, {"train_qat": trained}))
    assert of.record.facts["plan_before_training"]["model"] == "the checkpoint as it came"
    assert "teacher_kl" in of.record.table("hybrid_loss")
    assert of.record.artefact("hybrid").is_dir()
