"""One decision about the device, for all stages, and what it leaves in their records."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.machine import device, provenance
from workbench.machine.device import choose_device
from workbench.pilot.resolve import resolve
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress, follow
from workbench.records.run import open_run
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.stages.keys import stage_key

NO_GPU = (None, "torch finds no CUDA device")


@pytest.mark.parametrize(
    ("asked", "gpu", "name", "says"),
    [
        ("auto", ("an H200", ""), "cuda", "an H200 with 1.0 of 2.0 GB free"),
        ("cuda", ("an H200", ""), "cuda", "an H200"),
        ("cpu", ("an H200", ""), "cpu", "as readiness.device says, not an H200"),
        ("auto", NO_GPU, "cpu", "no GPU (torch finds no CUDA device)"),
        ("cpu", NO_GPU, "cpu", "no GPU"),
    ],
)
def test_the_pilot_decides_what_computes(monkeypatch, asked, gpu, name, says) -> None:
    monkeypatch.setattr(device, "torch_gpu", lambda: gpu)
    monkeypatch.setattr(device, "torch_gpu_memory", lambda: (10**9, 2 * 10**9))
    chosen = choose_device(asked)
    assert chosen.name == name and says in chosen.text
    assert (chosen.free_bytes == 10**9) == (name == "cuda")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(device, "torch_gpu", lambda: NO_GPU)
    with pytest.raises(ConfigError, match=r"readiness\.device is cuda, but torch finds no CUDA"):
        choose_device("cuda")


def test_a_figure_names_the_machine_part_that_computed_it(monkeypatch) -> None:
    monkeypatch.setattr(device, "torch_gpu", lambda: ("an H200", ""))
    monkeypatch.setattr(device, "torch_gpu_memory", lambda: (10**9, 2 * 10**9))
    monkeypatch.setattr(provenance, "torch_gpu", lambda: ("an H200", ""))
    assert provenance.machine_name("auto") == "an H200"
    assert provenance.machine_name("cpu").endswith("cores")


def context_of(folder: Path, **readiness: str) -> StageContext:
    pilot = Pilot.model_validate({"name": "a", "question": "b", "readiness": readiness})
    record = StageRecord("some", folder / "some")
    return StageContext(pilot, record, Progress(folder / "events.jsonl", "some"), {})


def test_a_stage_records_what_computed_and_why(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(device, "torch_gpu", lambda: ("an H200", ""))
    context = context_of(tmp_path, device="cpu")
    assert context.device.name == "cpu"
    assert context.record.facts["device"] == "cpu"
    assert "readiness.device says" in context.record.facts["device_text"]


def test_a_note_is_announced_and_kept_once(tmp_path) -> None:
    context = context_of(tmp_path)
    for _ in range(2):
        context.note("the other way was taken")
    assert context.record.notes == ["the other way was taken"]
    events = list(follow(tmp_path / "events.jsonl", None))
    assert [(e["kind"], e["text"]) for e in events] == [("note", "the other way was taken")]


def test_the_device_is_part_of_the_key_of_every_stage_that_computes(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "pilot.yaml"
    path.write_text("name: keys\nquestion: which keys change?\n")
    plain = resolve(path)
    run = open_run(plain)

    def changed(*overrides: str) -> set[str]:
        other = resolve(path, overrides)
        stages = "readiness", "profile_load", "train_qat", "measure_ab", "hybrid_plan"
        return {s for s in stages if stage_key(s, other, run) != stage_key(s, plain, run)}

    assert changed("readiness.device=cpu") == {
        "readiness", "train_qat", "measure_ab", "hybrid_plan",
    }  # fmt: skip
    assert changed("readiness.threads=1") == {"readiness", "measure_ab"}
    assert changed("readiness.probe.enabled=false") == {"readiness"}
