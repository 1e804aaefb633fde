"""The stage on two small trained arms: tables, budget, the packed plan, resume after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import workbench.hybrid.evaluator as evaluator_module
import workbench.stages.hybrid_plan as hybrid_plan
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import StageError
from workbench.measure.statistics import Estimate
from workbench.pilot.sections.data import Data
from workbench.pilot.sections.hybrid_plan import HybridPlan
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress, follow
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.ternary.manifest import Manifest
from workbench.ternary.packed import load_packed
from workbench.ternary.token_counts import save_token_counts, token_counts
from workbench.train.quality import bits_per_byte, document_losses

LAYERS = 14


def run(trained: StageRecord, folder: Path, **section) -> StageRecord:
    folder.mkdir(exist_ok=True)
    pilot = Pilot(
        name="small",
        question="which layers stay precise?",
        data=Data(sequence_length=32),
        hybrid_plan=HybridPlan(**{"sequences": 6, "granularity": "block", **section}),
    )
    record = StageRecord("hybrid_plan", folder)
    progress = Progress(folder / "events.jsonl", "hybrid_plan")
    hybrid_plan.run(StageContext(pilot, record, progress, {"train_qat": trained}))
    record.save()
    return record


def layer_file_bytes(folder: Path, names: list[str]) -> int:
    tensors = load_file(folder / "model.safetensors")
    return sum(t.nbytes for key, t in tensors.items() if key.rpartition(".")[0] in names)


@pytest.fixture(scope="module")
def by_layer(trained, tmp_path_factory) -> StageRecord:
    folder = tmp_path_factory.mktemp("by_layer")
    return run(trained, folder, granularity="linear", max_quality_loss=0.3)


@pytest.mark.parametrize("granularity", ["linear", "block"])
def test_the_plan_is_packed_as_recorded_and_counts_its_bytes(
    trained, by_layer, tmp_path, granularity
) -> None:
    save_token_counts(trained.artefact("post_training"), np.arange(7))
    record = by_layer if granularity == "linear" else run(trained, tmp_path / "s")
    if granularity == "block":
        assert token_counts(record.artefact("hybrid"), 7).tolist() == list(range(7))
    plan, manifest = record.table("plan"), Manifest.read(record.artefact("hybrid"))
    units = LAYERS if granularity == "linear" else 2
    assert len(plan) == units
    layers = Manifest.read(trained.artefact("ternary")).named("ternary")
    for row in plan.itertuples():
        own = [name for name in layers if name.startswith(row.layer)]
        assert {manifest.layers[name].precision for name in own} == {row.precision}
        assert layer_file_bytes(record.artefact("hybrid"), own) == row.size_bytes
    whole = 2 * sum(
        e.out_features * e.in_features for n, e in manifest.layers.items() if n in layers
    )
    ratio = record.metric("hybrid_size_ratio").value
    assert ratio == pytest.approx(plan["size_bytes"].sum() / whole)
    assert record.metric("layers", precision="int4") is None, "the pilot does not list it"
    listed = ("ternary", "int8", "high_precision")
    counts = [record.metric("layers", precision=p).value for p in listed]
    assert sum(counts) == LAYERS


def test_the_sensitivity_is_the_loss_with_only_that_layer_changed(by_layer) -> None:
    record = by_layer
    both = pd.concat([record.table("sensitivity"), record.table("sensitivity_other_base")])
    lowered = both[both["base"] == "full_precision"].set_index(["layer", "precision"])
    assert len(lowered) == 2 * LAYERS
    lines = [json.loads(x) for x in (record.folder / "evaluations.jsonl").read_text().splitlines()]
    at = {(x["base"], *x["changed"].items()): x["bits_per_byte"] for x in lines}
    trained_bits = at[("full_precision",)]
    for (layer, precision), row in lowered.iterrows():
        alone = at[("full_precision", (layer, precision))]
        assert row["quality_loss"] == pytest.approx(alone - trained_bits, abs=1e-12)
    assert lowered["quality_loss"].abs().max() > 0
    said = "no interval: 6 groups, a bootstrap needs 64"
    assert record.facts["sensitivity"]["no_interval"] == said and lowered["lo"].isna().all()
    assert any("raise hybrid_plan.sequences, 6 now, to 64" in note for note in record.notes)
    ternary, int8 = (lowered.xs(p, level="precision") for p in ("ternary", "int8"))
    assert ternary["quality_loss"].abs().sum() > 10 * int8["quality_loss"].abs().sum()


def test_whether_the_losses_are_told_from_noise_is_recorded(tmp_path) -> None:
    def said(documents: int, sequences: int) -> StageRecord:
        of = StageContext(
            Pilot(name="x", question="q", hybrid_plan=HybridPlan(sequences=sequences)),
            StageRecord("hybrid_plan", tmp_path), Progress(tmp_path / "e", "x"), {},
        )  # fmt: skip
        ends = pd.DataFrame({"lo": [0.1, -0.1, -0.3], "hi": [0.2, 0.1, -0.1]})
        ends = ends if documents >= 64 else ends * float("nan")
        hybrid_plan._say_intervals(of, ends, documents)
        return of.record

    told = said(70, 70)
    assert told.facts["sensitivity"] == {"documents": 70, "options": 3, "apart_from_zero": 2}
    assert told.notes == []
    few = said(30, 64)
    assert few.facts["sensitivity"]["apart_from_zero"] == 0
    assert "raise data.holdout_share" in few.notes[0], "more sequences would not help"


def test_the_figure_is_that_of_the_packed_file_on_text_not_used_to_choose(
    trained, by_layer, tmp_path
) -> None:
    record = by_layer
    metric = record.metric("hybrid_quality_loss_bits_per_byte")
    pilot_documents = trained.table("heldout").iloc[1::2]
    tokenizer = load_tokenizer(str(trained.artefact("tokenizer")))
    hybrid = load_packed(record.artefact("hybrid"))
    precise = hybrid_plan.load_checkpoint(str(trained.artefact("full_precision")))
    _, judging = hybrid_plan._texts(
        StageContext(
            Pilot(name="x", question="q", data=Data(sequence_length=32),
                  hybrid_plan=HybridPlan(sequences=6)),
            record, Progress(tmp_path / "e", "x"), {},
        ),
        trained, tokenizer,
    )  # fmt: skip
    assert {name.rpartition("@")[0] for name in judging["id"]} <= set(pilot_documents["id"])
    bits = [bits_per_byte(document_losses(m, tokenizer, judging, 32)) for m in (precise, hybrid)]
    assert metric.value == pytest.approx(bits[1] - bits[0], abs=1e-9)
    assert metric.n == 10, "every document of that half, more pieces of each than chose the plan"
    assert record.facts["limit"] == {"max_quality_loss": 0.3, "outcome": "undecided"}


def test_int4_is_a_precision_where_the_pilot_lists_it(trained, tmp_path) -> None:
    record = run(trained, tmp_path / "s", precisions=["int4"], max_size_ratio=0.3)
    plan, manifest = record.table("plan"), Manifest.read(record.artefact("hybrid"))
    assert set(plan["precision"]) == {"int4"} == set(record.table("sensitivity")["precision"])
    layers = Manifest.read(trained.artefact("ternary")).named("ternary")
    assert set(manifest.named("int4")) == set(layers)
    for row in plan.itertuples():
        own = [name for name in layers if name.startswith(row.layer)]
        assert layer_file_bytes(record.artefact("hybrid"), own) == row.size_bytes
    assert record.metric("layers", precision="int4").value == LAYERS
    assert record.metric("hybrid_quality_loss_bits_per_byte").value < 0.3, "4 bits lose little"


def test_a_loose_budget_gives_the_smallest_model(trained, tmp_path) -> None:
    record = run(trained, tmp_path / "s", max_quality_loss=50.0)
    assert set(record.table("plan")["precision"]) == {"ternary"}
    assert record.facts["missed"] == []


def test_a_budget_of_nothing_keeps_full_precision_and_says_what_is_missed(trained, tmp_path):
    record = run(trained, tmp_path / "s", max_quality_loss=0.0, max_size_ratio=0.01)
    missed = record.facts["missed"]
    assert len(missed) == 1 and missed[0].startswith("size: ")
    assert any("the budget is missed in size" in note for note in record.notes)
    chosen = record.table("candidates").query("chosen")
    assert chosen["within_quality"].item() and not chosen["within_size"].item()


def test_an_unreachable_quality_gives_the_best_plan_and_says_so(trained, tmp_path) -> None:
    record = run(trained, tmp_path / "s", max_quality_loss=0.0, precisions=["ternary"])
    assert [text.partition(":")[0] for text in record.facts["missed"]] == ["quality"]
    table = record.table("candidates")
    assert table.query("chosen")["quality_loss"].item() == table["quality_loss"].min()
    assert (record.artefact("hybrid") / "model.safetensors").exists()


def test_a_killed_stage_goes_on_and_ends_the_same(trained, tmp_path, monkeypatch) -> None:
    whole = run(trained, tmp_path / "whole")
    total = len((tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines())
    original, calls = evaluator_module.document_losses, []

    def killed_at_the_fifth(*arguments):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(evaluator_module, "document_losses", killed_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run(trained, tmp_path / "killed")
    results = tmp_path / "killed" / "evaluations.jsonl"
    results.write_text(results.read_text() + '{"key": "half a li')
    calls.clear()
    monkeypatch.setattr(
        evaluator_module, "document_losses", lambda *a: calls.append(1) or original(*a)
    )
    resumed = run(trained, tmp_path / "killed")
    assert len(calls) == total - 4
    assert resumed.metrics == whole.metrics
    for table in whole.tables:
        pd.testing.assert_frame_equal(resumed.table(table), whole.table(table))


def test_progress_is_reported_for_every_layer(trained, tmp_path) -> None:
    run(trained, tmp_path / "s")
    events = list(follow(tmp_path / "s" / "events.jsonl", None))
    last = {e["task"]: (e["done"], e["total"]) for e in events if e["kind"] == "step"}
    assert last == {"sensitivity of full_precision": (2, 2), "sensitivity of ternary": (2, 2)}


def test_an_arm_that_diverged_is_named(trained, tmp_path, monkeypatch) -> None:
    def diverged(*_):
        return pd.DataFrame({"nats": [float("nan")], "bytes": [1]})

    monkeypatch.setattr(evaluator_module, "document_losses", diverged)
    with pytest.raises(StageError, match="full_precision with nothing changed: a loss"):
        run(trained, tmp_path / "s")


def test_the_models_are_as_before_after_an_exchange(trained, tmp_path) -> None:
    context = StageContext(
        Pilot(name="x", question="q"),
        StageRecord("hybrid_plan", tmp_path),
        Progress(tmp_path / "e", "x"),
        {},
    )
    for name in ("full_precision", "ternary"):
        base = hybrid_plan._open_base(context, trained, name)
        before = dict(base.model.named_modules())
        ids = torch.arange(2, 20)[None]
        with torch.no_grad():
            expected = base.model(ids).logits
            with base.exchanged({unit: "int8" for unit in base.units}) as model:
                assert not torch.equal(model(ids).logits, expected)
            assert torch.equal(base.model(ids).logits, expected)
        assert dict(base.model.named_modules()) == before


def test_the_limit_is_held_broken_or_undecided_by_the_whole_interval(tmp_path) -> None:
    def outcome(lo: float | None, hi: float | None) -> tuple[str, list[str]]:
        of = StageContext(
            Pilot(name="x", question="q", hybrid_plan=HybridPlan(max_quality_loss=0.02)),
            StageRecord("hybrid_plan", tmp_path), Progress(tmp_path / "e", "x"), {},
        )  # fmt: skip
        missed = hybrid_plan._judge_limit(of, Estimate(0.065, lo, hi, 70, "", reason="too few"))
        assert "on fresh text: +0.0650 bits/byte" in of.record.notes[0]
        return of.record.facts["limit"]["outcome"], missed

    assert outcome(0.001, 0.019) == ("held", [])
    assert outcome(0.01, 0.12) == ("undecided", [])
    assert outcome(None, None) == ("undecided", []), "no interval decides nothing"
    found, missed = outcome(0.05, 0.08)
    assert found == "broken" and "more than max_quality_loss 0.02" in missed[0]


def test_the_front_is_recorded(by_layer) -> None:
    rows = by_layer.table("front")
    assert len(rows) >= 3 and rows["size_ratio"].is_monotonic_decreasing
    assert (rows[list(hybrid_plan.PLANNED)].sum(axis=1) == LAYERS).all()
    assert (rows["bound"] <= rows["quality_loss"].clip(lower=0) + 1e-9).all() or (
        by_layer.facts["base"] == "ternary"
    )
