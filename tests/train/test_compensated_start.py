"""The start of the ternary arm: made once, kept over a kill, shared by the rates of a sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from workbench.records.events import Progress
from workbench.ternary import bit_linears
from workbench.train import compensated_start
from workbench.train.arm import train_arm
from workbench.train.compensated_start import START
from workbench.train.rate_sweep import sweep_rates

TERNARY_AT_ONCE = {"warmup": {"share": 0.0}, "threshold": {"share": 0.0}}


def setup_of(small: SimpleNamespace, **train: object):
    settings = {"compensated_start": {"sequences": 8}, "steps": 6, **TERNARY_AT_ONCE}
    return small.make_setup(**settings | train)


def test_the_first_step_is_ternary_and_starts_lower_than_plain_rounding(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    taught = small.make_setup(steps=60, lr=4e-3, warmup={"share": 1.0}, threshold={"share": 0.0})
    model = small.make_model("ternary", taught)  # full precision to the end: it knows something
    train_arm("ternary", model, taught, tmp_path / "taught", Progress(tmp_path / "e", "t"))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first = {}
    for sequences in (0, 32):
        setup = setup_of(small, compensated_start={"sequences": sequences}, lr=1e-6)
        model.load_state_dict(state)
        folder = tmp_path / str(sequences)
        evaluator = train_arm("ternary", model, setup, folder, Progress(folder / "e", "t"))
        first[sequences] = float(evaluator.telemetry.frame("loss")["loss"].iloc[0])
    assert first[32] < first[0] - 0.05
    assert not (folder / START).exists(), "a finished arm has its weights in final.safetensors"


def test_a_second_attempt_loads_what_the_first_has_made(
    small: SimpleNamespace, tmp_path: Path, monkeypatch
) -> None:
    setup, progress = setup_of(small), Progress(tmp_path / "e", "t")
    first = small.make_model("ternary", setup)
    compensated_start.start_compensated(first, setup, tmp_path, progress)
    monkeypatch.setattr(compensated_start, "compensate", None)  # would be called in vain
    second = small.make_model("ternary", setup)
    compensated_start.start_compensated(second, setup, tmp_path, progress)
    for (_, one), (_, other) in zip(bit_linears(first), bit_linears(second), strict=True):
        assert torch.equal(one.weight, other.weight)


def test_a_sweep_makes_the_start_once(small: SimpleNamespace, tmp_path: Path, monkeypatch) -> None:
    calls, real = [], compensated_start.compensate
    monkeypatch.setattr(
        compensated_start, "compensate", lambda *all_: (calls.append(1), real(*all_))[1]
    )
    setup = setup_of(
        small, steps=12, rate_sweep={"rates": [1e-4, 1e-3], "share": 0.5, "sequences": 4}
    )
    found = sweep_rates(
        lambda: small.make_model("ternary", setup), setup, tmp_path / "sweep",
        Progress(tmp_path / "e", "t"),
    )  # fmt: skip
    assert len(found) == 2 and found["bits_per_byte"].notna().all() and len(calls) == 1
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["rates.jsonl"]


def test_a_frozen_base_is_left_alone(small: SimpleNamespace, tmp_path: Path) -> None:
    setup = setup_of(small)
    model = small.make_model("ternary", setup).requires_grad_(False)
    before = {name: layer.weight.clone() for name, layer in bit_linears(model)}
    compensated_start.start_compensated(
        model, replace(setup), tmp_path, Progress(tmp_path / "e", "t")
    )
    assert all(torch.equal(layer.weight, before[n]) for n, layer in bit_linears(model))
