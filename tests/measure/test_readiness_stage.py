import sys
import time

import pytest
import ternary_kernels
from transformers import LlamaConfig

from workbench.errors import ConfigError
from workbench.machine import device
from workbench.measure.simulators.json_service import JsonService, redfish
from workbench.model.presets import PRESETS, Shape
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages import readiness
from workbench.stages.context import StageContext


def pilot(**sections) -> Pilot:
    quick = {"bandwidth_mib": 8, "bandwidth_repetitions": 6, "probe": {"enabled": False}}
    given = {"name": "test", "question": "can it run?", "readiness": quick}
    return Pilot.model_validate(given | sections)


def finished(tmp_path, chosen: Pilot) -> StageRecord:
    record = StageRecord("readiness", tmp_path / "stage")
    readiness.run(
        StageContext(chosen, record, Progress(tmp_path / "events.jsonl", "readiness"), {})
    )
    record.save()
    return StageRecord.load(record.folder)


def test_the_stage_measures_this_machine_and_ends_with_a_verdict(tmp_path):
    record = finished(tmp_path, pilot())
    one = record.metric("read_bandwidth_gbps", threads="1")
    assert one.lo <= one.value <= one.hi
    assert one.n == 6
    assert record.metric("memory_available_gb").value > 0
    bandwidth = record.table("bandwidth")
    assert set(bandwidth.loc[bandwidth["threads"] == "1", "repetition"]) == set(range(6))
    meters = record.facts["meters"]
    assert {m.split()[0] for m in meters["found"]} | set(meters["missing"]) >= {"nvml", "rapl"}
    assert record.facts["machine"]["cpu"]["cores"] >= 1
    assert record.facts["kernels"]["name"] in ("native", "torch")
    verdict = record.facts["verdict"]
    assert any("Largest preset that fits" in sentence for sentence in verdict)
    assert any(sentence.startswith("Energy can") for sentence in verdict)


def test_the_peak_of_int8_products_is_measured_or_has_a_reason(tmp_path):
    peak = finished(tmp_path, pilot()).metric("int8_peak_gmacs", threads="1")
    assert (peak.value is None) == bool(peak.reason)
    assert (peak.value is None) == (ternary_kernels.backend().name == "torch")


def test_the_probe_s_result_is_part_of_the_verdict(tmp_path):
    probe = {"shape": "tiny-1m", "prompt_tokens": 8, "output_tokens": 2, "repetitions": 2}
    quick = {"bandwidth_mib": 8, "bandwidth_repetitions": 2, "probe": probe}
    record = finished(tmp_path, pilot(readiness=quick))
    speedup = record.metric("decode_speedup", source="probe", arm="ternary")
    assert speedup.value > 0
    assert set(record.table("probe")["arm"]) == {"full_precision", "int8", "int4", "ternary"}
    sentence = f"ternary decodes {speedup.value:.2f} times"
    assert any("tiny-1m" in text and sentence in text for text in record.facts["verdict"])


def test_a_probe_that_was_switched_off_leaves_reasons_and_no_figures(tmp_path):
    record = finished(tmp_path, pilot())
    for name in ("decode_speedup", "prefill_speedup", "memory_ratio"):
        metric = record.metric(name, source="probe", arm="ternary")
        assert metric.value is None
        assert metric.reason == "readiness.probe.enabled is false"


def test_a_checkpoint_s_own_size_is_judged_and_not_a_preset_s(tmp_path):
    config = LlamaConfig(
        vocab_size=600, hidden_size=96, intermediate_size=200, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "model")
    chosen = pilot(model={"checkpoint": str(tmp_path / "model")})
    (row,) = (
        readiness.fits_table(chosen, "cpu", 10**10).query("preset == 'checkpoint'").itertuples()
    )
    shape = Shape(96, 200, 2, 4, 2, 600, 2048, tied=True)
    assert row.parameters == shape.parameters and row.trains_here
    assert row.serving_ternary_gb == shape.serving_bytes_ternary() / 1e9
    (said,) = [t for t in finished(tmp_path, chosen).facts["verdict"] if "own model" in t]
    assert "0M parameters and needs about" in said and "to train (fits)" in said
    (small,) = (
        readiness.fits_table(chosen, "cpu", 10**5).query("preset == 'checkpoint'").itertuples()
    )
    assert not small.serves_full_here


def test_what_fits_grows_with_the_memory_and_with_fewer_bits():
    little = readiness.fits_table(pilot(), "cpu", 2 * 10**9)
    much = readiness.fits_table(pilot(), "cpu", 40 * 10**9)
    assert list(little["preset"]) == list(much["preset"])
    assert set(little["preset"]) == set(PRESETS)
    assert little["parameters"].is_monotonic_increasing
    for column in ("trains_here", "serves_full_here", "serves_ternary_here"):
        assert (much[column] >= little[column]).all()
        assert much[column].sum() > little[column].sum()
    assert (little["serves_ternary_here"] >= little["serves_full_here"]).all()
    fits = little[little["trains_here"]]
    assert (fits["training_gb"] <= 2 * readiness.USABLE).all()


def test_training_needs_more_memory_with_more_tokens_a_step():
    small = readiness.fits_table(pilot(train={"batch_size": 1}), "cpu", 10**9)
    large = readiness.fits_table(pilot(train={"batch_size": 64}), "cpu", 10**9)
    assert (large["training_gb"] > small["training_gb"]).all()
    assert large["serving_full_gb"].equals(small["serving_full_gb"])


@pytest.mark.parametrize(("name", "held"), [("cuda", 1), ("cpu", 4)])
def test_processes_share_main_memory_and_have_a_gpu_each(name, held):
    alone = readiness.fits_table(pilot(train={"batch_size": 2}), name, 10**9)
    shared = readiness.fits_table(
        pilot(train={"batch_size": 8, "launch": {"processes": 4}}), name, 10**9
    )
    exchanged = 4 * alone["parameters"] / 1e9
    wanted = held * (alone["training_gb"] + exchanged)
    assert shared["training_gb"].to_numpy() == pytest.approx(wanted.to_numpy())


def test_a_model_that_does_not_fit_is_said_in_the_verdict(tmp_path):
    verdict = finished(tmp_path, pilot(model={"preset": "llama-3-70b"})).facts["verdict"]
    assert any("does not fit here: llama-3-70b needs about" in sentence for sentence in verdict)


def test_all_that_this_machine_lacks_is_known_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "torch_gpu", lambda: (None, "torch finds no CUDA device"))
    log = tmp_path / "power.csv"
    log.write_text("time,W\n")
    asked = pilot(
        readiness={"device": "cuda", "threads": 10**6, "probe": {"shape": "lama-3-70b"}},
        measure_ab={"meters": {"csv": str(log)}},
    )
    problems = readiness.check(asked)
    for problem, words in zip(
        problems,
        ("did you mean llama-3-70b", "torch finds no CUDA", "readiness.threads", "time, W"),
        strict=True,
    ):
        assert words in problem
    assert readiness.check(pilot()) == []


def test_a_gpu_that_is_not_there_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "torch_gpu", lambda: (None, "torch finds no CUDA device"))
    with pytest.raises(ConfigError, match=r"readiness\.device is cuda, but torch finds no CUDA"):
        finished(tmp_path, pilot(readiness={"device": "cuda"}))


def test_a_power_log_that_cannot_be_used_is_said_before_anything_is_paid_for(tmp_path):
    """Of yesterday, in kilowatts called watts: not "energy can be measured here"."""
    log, yesterday = tmp_path / "power.csv", time.time() - 86400
    rows = [f"{yesterday + 0.05 * i},pdu,1.4\n" for i in range(40)]
    log.write_text("timestamp,source,watts\n" + "".join(rows))
    asked = pilot(measure_ab={"meters": {"sources": ["csv"], "csv": str(log)}})
    record = finished(tmp_path, asked)
    assert record.facts["meters"]["found"] == []
    (said,) = (s for s in record.facts["verdict"] if s.startswith("Energy cannot be measured here"))
    assert "pdu shows 1.4 W: kilowatts?" in said and "24.0 h old" in said


def test_meters_of_a_network_are_asked_and_one_that_holds_more_machines_is_no_energy(tmp_path):
    with JsonService(redfish(lambda: 412.0)) as service:
        answers = {"url": service.url, "name": "bmc"}
        rack = answers | {"name": "all of it", "scope": "rack"}
        gone = {"url": "http://127.0.0.1:1", "name": "gone"}
        meters = {"sources": ["redfish"], "redfish": [answers, rack, gone]}
        record = finished(tmp_path, pilot(measure_ab={"meters": meters}))
    about = record.facts["meters"]
    assert about["found"] == ["redfish bmc (measured)"]
    assert (
        "redfish all of it answers, but holds more than this machine (rack)"
        in (about["missing"]["redfish"])
    )
    assert "no_answer: gone: " in about["missing"]["redfish"]
    assert about["notes"][0].startswith("With redfish bmc a session takes about ")


@pytest.mark.parametrize(
    ("every_s", "ago_s", "said"),
    [
        (1.0, 0.5, None),
        (15.0, 0.5, "it has a sample every 15 s, and a gap over measure_ab.meters.max_gap_s (3 s)"),
        (1.0, 20.0, "its latest sample is 20.0 s old"),
        (1.0, -60.0, "its latest sample is 60.0 s in the future"),
    ],
    ids=["good", "slow", "old", "ahead"],
)
def test_a_prometheus_that_gives_no_figure_says_so_before_anything_is_paid_for(
    tmp_path, every_s, ago_s, said
):
    def answer(_):
        times = [time.time() - ago_s - every_s * n for n in reversed(range(4))]
        series = {"metric": {"instance": "pdu"}, "values": [[at, "400"] for at in times]}
        return {"data": {"resultType": "matrix", "result": [series]}}

    with JsonService({"/api/v1/query": answer}) as service:
        own = {"url": service.url, "query": "pdu_watts", "unit": "W", "name": "pdu"}
        meters = {"sources": ["prometheus"], "prometheus": [own]}
        context = StageContext(
            pilot(measure_ab={"meters": meters}),
            StageRecord("readiness", tmp_path),
            Progress(tmp_path / "events.jsonl", "readiness"),
            {},
        )
        found, missing, notes = readiness._meters(context)
    if said is None:
        assert found == ["prometheus pdu pdu (measured)"] and missing == []
        assert "of turns" in notes[0] or "turns of 22 s" in notes[0]
    else:
        assert found == [] and said in missing[0].reason


def test_a_library_that_a_meter_needs_is_asked_for_before_anything_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymodbus", None)
    modbus = [{"host": "10.0.0.9", "preset": "sdm630"}]
    (problem,) = readiness.check(pilot(measure_ab={"meters": {"modbus": modbus}}))
    assert "measure_ab.meters.modbus needs pymodbus" in problem and "[meters]" in problem
