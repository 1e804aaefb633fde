"""The speed probe: what it chooses, what it records, and what it does without room or time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig

from workbench.engine.engine import Engine
from workbench.errors import StageError
from workbench.machine import device
from workbench.machine.memory import Memory
from workbench.measure.orders import williams
from workbench.measure.probe import run_probe
from workbench.measure.statistics import mean_ratio
from workbench.model.presets import PRESETS, Shape
from workbench.pilot.sections.readiness import Packing
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext

ANY_NOISE = {"max_others_share": 1, "max_steal_share": 1, "max_pressure_share": 1}


def make_context(folder: Path, **section) -> StageContext:
    section = {"prompt_tokens": 16, "output_tokens": 4, "repetitions": 2, **section}
    readiness = {"probe": section, "threads": 1, "quiet": ANY_NOISE}
    pilot = Pilot(name="probe", question="How fast?", readiness=readiness)
    record = StageRecord("readiness", folder)
    return StageContext(pilot, record, Progress(folder / "events.jsonl", "readiness"), {})


def test_it_measures_all_arms_in_turn(tmp_path: Path) -> None:
    context = make_context(tmp_path, largest="tiny-1m", repetitions=8, precision=1e9)
    run_probe(context)
    turns = context.record.table("probe")
    assert list(turns.columns) == ["block", "order", "arm", "phase", "seconds", "tokens"]
    order = turns[turns["phase"] == "decode"].groupby("block")["arm"].agg(list).tolist()
    forth = ["full_precision", "int8", "int4", "ternary"]
    assert sorted(order) == sorted(2 * williams(forth))
    assert context.record.table("noise")["kept"].tolist() == [True] * 8
    phases = ("decode_speedup", "prefill_speedup")
    for name in [phase + over for phase in phases for over in ("", "_over_int8", "_over_int4")]:
        metric = context.record.metric(name, source="probe", shape="tiny-1m")
        assert metric.n == 8 and metric.lo < metric.value < metric.hi
        of_phase = turns[turns["phase"] == name.split("_")[0]]
        seconds = of_phase.pivot(index="block", columns="arm", values="seconds")
        other = seconds[name[-4:] if "_over_" in name else "full_precision"]
        assert metric.value == mean_ratio(other, seconds["ternary"]).value
    sizes = {
        arm: context.record.metric("model_memory_mb", arm=arm, source="probe").value
        for arm in forth
    }
    assert sizes["full_precision"] * 1e6 == pytest.approx(2 * PRESETS["tiny-1m"].parameters, 0.01)
    ratio = context.record.metric("memory_ratio", arm="ternary", source="probe").value
    assert ratio == pytest.approx(sizes["full_precision"] / sizes["ternary"])
    for kind in ("int8", "int4"):
        ratio = context.record.metric(f"memory_ratio_over_{kind}", arm="ternary", source="probe")
        assert ratio.value == pytest.approx(sizes[kind] / sizes["ternary"])
    assert sizes["int8"] * 1e6 == pytest.approx(PRESETS["tiny-1m"].serving_bytes_int8(), 0.01)
    assert sizes["int4"] * 1e6 == pytest.approx(PRESETS["tiny-1m"].serving_bytes_int4(), 0.01)
    assert not context.record.notes


def test_too_little_time_means_fewer_blocks_and_it_is_said(tmp_path: Path) -> None:
    context = make_context(tmp_path, shape="tiny-1m", repetitions=50, budget_s=1e-6)
    run_probe(context)
    assert context.record.table("probe")["block"].nunique() == 2
    assert "ended after 2 blocks, of 50 at most" in context.record.notes[0]
    speedup = context.record.metric("decode_speedup")
    assert speedup.lo is None and "an interval needs 6" in speedup.reason


def test_it_ends_when_its_ratios_are_precise(tmp_path: Path) -> None:
    context = make_context(tmp_path, shape="tiny-1m", repetitions=50, precision=1e9)
    run_probe(context)
    assert context.record.table("probe")["block"].nunique() == 8


def free(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    monkeypatch.setattr(device, "memory", lambda: Memory(size_bytes, size_bytes, None))


def test_auto_takes_what_fits_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 60_000_000)
    context = make_context(tmp_path)
    run_probe(context)
    shape = context.record.metric("decode_speedup").labels["shape"]
    sizes = {n: s.serving_bytes_full() + s.serving_bytes_ternary() for n, s in PRESETS.items()}
    assert sizes[shape] < 0.7 * 60_000_000 < sizes["small-25m"]
    assert f"{shape} is the largest preset that fits the free memory" in context.record.notes[0]


def test_int8_that_does_not_fit_beside_the_others_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = PRESETS["small-25m"]
    free(monkeypatch, int((shape.serving_bytes_full() + shape.serving_bytes_ternary()) * 1.6))
    context = make_context(tmp_path, shape="small-25m")
    run_probe(context)
    assert "INT8 is left out: with it 0.1 GB are needed" in context.record.notes[0]
    assert "INT4 is left out: with it 0.1 GB" in context.record.notes[0]
    assert set(context.record.table("probe")["arm"]) == {"full_precision", "ternary"}
    metric = context.record.metric("decode_speedup_over_int8", source="probe", shape="small-25m")
    assert metric.value is None and "left out" in metric.reason
    assert context.record.metric("decode_speedup").value > 0


def test_where_nothing_fits_the_figures_are_missing_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1_000_000)
    context = make_context(tmp_path)
    run_probe(context)
    reasons = {metric.reason for metric in context.record.metrics}
    assert reasons == {"no preset fits 0.00 GB, 70% of free memory"}
    assert context.record.metric("decode_speedup", arm="ternary").value is None


def test_a_named_shape_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 10_000_000)
    with pytest.raises(StageError, match=r"bitnet-3b needs .* GB for both arms"):
        run_probe(make_context(tmp_path, shape="bitnet-3b"))


def own(folder: Path, tmp_path: Path, **section) -> StageContext:
    """A context whose pilot has a checkpoint: nothing but its configuration."""
    config = LlamaConfig(
        vocab_size=600, hidden_size=96, intermediate_size=200, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    context = make_context(tmp_path, **section)
    values = context.pilot.model_dump() | {"model": {"checkpoint": str(folder)}}
    return replace(context, pilot=Pilot(**values))


def test_a_checkpoint_is_probed_in_its_own_shape(tmp_path: Path) -> None:
    context = own(tmp_path / "model", tmp_path)
    run_probe(context)
    whole = Shape(96, 200, 4, 4, 2, 600, 2048, tied=True, head_width=32)
    for arm, size in (
        ("full_precision", whole.serving_bytes_full()),
        ("int4", whole.serving_bytes_int4()),
        ("ternary", whole.serving_bytes_ternary()),
    ):
        found = context.record.metric("model_memory_mb", arm=arm, shape="checkpoint")
        assert found.value * 1e6 == pytest.approx(size, 0.06), arm  # rows filled up to sixteen
        assert found.kind == "measured"
    assert context.record.metric("decode_speedup", source="probe", shape="checkpoint").value > 0


def test_a_checkpoint_that_does_not_fit_is_extrapolated_from_fewer_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = own(tmp_path / "model", tmp_path)
    whole = Shape(96, 200, 4, 4, 2, 600, 2048, tied=True, head_width=32)
    needed = sum(f(whole.with_layers(2)) for f in (Shape.serving_bytes_full,
                 Shape.serving_bytes_ternary))  # fmt: skip
    free(monkeypatch, int((needed + 2 * 20 * whole.kv_bytes_per_token()) / 0.7) + 1000)
    run_probe(context)
    record = context.record
    assert "measured with 2 of 4 blocks and extrapolated" in record.notes[0]
    memory = record.metric("model_memory_mb", arm="full_precision", shape="checkpoint")
    assert memory.value * 1e6 == pytest.approx(whole.serving_bytes_full(), 0.02)
    assert memory.kind == "modelled" and "2 of 4 blocks" in memory.how
    prefill = record.metric("prefill_tokens_per_s", arm="ternary", shape="checkpoint")
    turns = record.table("probe").query("phase == 'prefill' and arm == 'ternary'")
    rates = turns["tokens"] / (2 * turns["seconds"])  # twice the blocks
    assert rates.min() * 0.99 <= prefill.value <= rates.max() * 1.01
    assert prefill.kind == "modelled"


def test_a_checkpoint_that_no_kernel_computes_is_probed_by_a_preset(tmp_path: Path) -> None:
    context = own(tmp_path / "model", tmp_path, largest="tiny-1m")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"silu"', '"gelu"'))
    run_probe(context)
    assert "cannot be computed by the kernels: activation 'gelu'" in context.record.notes[0]
    assert context.record.metric("decode_speedup", shape="tiny-1m").value > 0


@pytest.mark.parametrize("packing", [{}, {"tables": "mixed", "ternary": "base3"}])
@pytest.mark.parametrize("precision", ["half", "int8", "int4", "ternary"])
def test_random_models_of_ragged_shapes_run(precision: str, packing: dict[str, str]) -> None:
    config = LlamaConfig(
        vocab_size=1003, hidden_size=72, intermediate_size=101, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=32,
    )  # fmt: skip
    with Engine.random(config, precision, threads=1, packing=Packing(**packing)) as engine:
        usual = "half" if precision == "half" else "int8"
        kind = "mixed" if packing and precision != "half" else usual
        assert engine.core.weights["embed"].kind == kind
        logits = engine.logits(list(range(30)))
        assert logits.shape == (30, 1003)
        assert 0.01 < logits.std() < 100
