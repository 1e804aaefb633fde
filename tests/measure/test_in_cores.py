"""Arms of a pilot in a core of their own, beside the others: which there are, and what computes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from ternary_kernels import available_isas
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.measure.latency import LoadClass
from workbench.pilot.sections.measure_ab import MeasureAb
from workbench.pilot.sections.readiness import Readiness
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages import measure_ab, measure_ab_load
from workbench.stages.context import StageContext
from workbench.ternary import to_ternary
from workbench.ternary.packed import save_packed
from workbench.wording.vocabulary import FIGURES

ARMS = ["full_precision", "ternary"]


def pilot_of(**section) -> Pilot:
    section = {"arms": ARMS, **section}
    return Pilot(name="x", question="?", measure_ab=section, readiness={"threads": 1})


def context_of(pilot: Pilot, folder: Path) -> StageContext:
    record = StageRecord("measure_ab", folder)
    return StageContext(pilot, record, Progress(folder / "events.jsonl", "measure_ab"), {})


def trained_in(folder: Path) -> SimpleNamespace:
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=50, max_position_embeddings=256,
        )
    )  # fmt: skip
    model.save_pretrained(folder / "full_precision")
    report = to_ternary(model)
    save_packed(model, folder / "ternary", report.precisions, report.threshold)
    return SimpleNamespace(artefact=lambda name: folder / name)


def test_they_are_arms_of_the_pilot_with_another_ones_model() -> None:
    section = pilot_of(
        arms={"ternary": {}, "full_precision": {}, "today": {"endpoint": "http://10.0.0.5:8000"}},
        in_cores={"npu": {"core": "reference"}, "full_npu": {"core": "x", "arm": "full_precision"}},
    ).measure_ab
    assert section.own_arms == ["full_precision", "ternary", "npu", "full_npu"]
    assert [section.model_of(arm) for arm in section.own_arms] == [
        "full_precision", "ternary", "ternary", "full_precision",
    ]  # fmt: skip
    assert set(section.all_arms) == {*section.own_arms, "today"}
    assert section.turns_of_a_block == 5 * 5


def test_gates_may_name_them() -> None:
    pilot = pilot_of(in_cores={"npu": {"core": "reference"}})
    for name in ("throughput_ratio", "energy_j_per_request", "e2e_speedup"):
        assert any("npu" in labels["arm"].of(pilot) for labels in FIGURES[name].labels), name


@pytest.mark.parametrize(
    ("in_cores", "message"),
    [
        ({"ternary": {"core": "native"}}, "'ternary' cannot name an arm"),
        ({"hybrid": {"core": "native"}}, "'hybrid' cannot name an arm"),
        ({"my arm": {"core": "native"}}, "'my arm' cannot name an arm"),
        ({"npu": {"core": "native", "arm": "int8"}}, "npu.arm: int8 is none of measure_ab.arms"),
        ({"a": {"core": "native"}, "b": {"core": "native", "arm": "a"}}, "b.arm: a is none of"),
    ],
)
def test_names_and_models_that_are_none_are_refused(in_cores: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MeasureAb(arms=ARMS, in_cores=in_cores)


def test_an_unknown_core_is_refused_before_anything_is_trained() -> None:
    problems = measure_ab.check(pilot_of(in_cores={"npu": {"core": "referense"}}))
    assert "measure_ab.in_cores.npu: core referense: unknown; did you mean reference" in problems[0]
    assert not measure_ab.check(pilot_of(in_cores={"npu": {"core": "reference"}}))


def test_each_computes_in_its_own_core_and_the_comparison_says_so(tmp_path: Path) -> None:
    context = context_of(pilot_of(in_cores={"plain": {"core": "reference"}}), tmp_path)
    trained = trained_in(tmp_path)
    classes = [LoadClass.batched(4, 4, 2)]
    asked = SimpleNamespace(context=0)
    with measure_ab._loaded_arms(context, trained, classes, asked) as arms:
        engines = {name: arm.engine for name, arm in arms.items()}
        assert list(engines) == ["full_precision", "ternary", "plain"]
        assert engines["plain"].backend.startswith("ternary_kernels torch")
        assert engines["ternary"].backend != engines["plain"].backend
        assert engines["ternary"].decode_greedy([0], [3], 1).shape == (1, 1)
        assert engines["plain"].weight_bytes == engines["ternary"].weight_bytes
        assert "plain: ternary_kernels torch" in measure_ab._about_kernels(context, engines)
    note = next(note for note in context.record.notes if note.startswith("plain is the model"))
    assert "of ternary in ternary_kernels torch" in note and "the weights and the core" in note


def test_under_load_each_is_served_in_its_own_core(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(measure_ab_load, "wanted_context", lambda *_: 64)
    context = context_of(pilot_of(in_cores={"plain": {"core": "reference"}}), tmp_path)
    spec = measure_ab_load._spec(context, trained_in(tmp_path), None)
    assert spec.arms["plain"] == spec.arms["ternary"] == tmp_path / "ternary"
    assert spec.cores == {"plain": "reference"} and spec.core == "auto"
    spec.save(tmp_path / "spec.json")
    assert type(spec).load(tmp_path / "spec.json") == spec


@pytest.mark.skipif(not available_isas(), reason="no native library")
def test_all_compute_with_the_pilot_s_packing_measured_and_served(
    tmp_path: Path, monkeypatch
) -> None:
    packing = {"tables": "mixed", "ternary": "base3"}
    pilot = pilot_of().model_copy(update={"readiness": Readiness(threads=1, packing=packing)})
    context, trained = context_of(pilot, tmp_path), trained_in(tmp_path)
    asked = SimpleNamespace(context=0)
    with measure_ab._loaded_arms(context, trained, [LoadClass.batched(4, 4, 2)], asked) as arms:
        said = {name: arm.engine.backend for name, arm in arms.items()}
    assert said["ternary"].endswith("1 thread, mixed tables, base 3")
    assert said["full_precision"].endswith("1 thread")
    monkeypatch.setattr(measure_ab_load, "wanted_context", lambda *_: 64)
    assert measure_ab_load._spec(context, trained, None).packing == pilot.readiness.packing
