"""The guard: what it calls a spike, a storm, a dead layer; that its brake survives a kill."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from workbench.errors import StageError
from workbench.pilot.sections.train import Guard
from workbench.records.events import Progress, follow
from workbench.train.arm import FINAL, train_arm
from workbench.train.guard import TABLE, StabilityGuard
from workbench.train.setup import TrainingSetup
from workbench.train.telemetry import Telemetry

EVERY_FLIP = {"flip_rate": 0.0, "action": "lower_rate", "rate_factor": 0.5, "least_factor": 0.2}


def make_guard(folder: Path, **section: object) -> StabilityGuard:
    progress = Progress(folder / "events.jsonl", "train_qat")
    telemetry = Telemetry(folder / "telemetry", 10**9)
    return StabilityGuard(Guard(**section), "ternary", telemetry, progress, folder / "checkpoints")


def feed(guard: StabilityGuard, losses: dict[int, float]) -> None:
    for step, loss in losses.items():
        row = {"step": step, "loss": loss}
        guard.telemetry.add("loss", [row])
        guard.after_step(row)


def layer(name: str, minus: float, zero: float, flips: float | None) -> dict[str, object]:
    shares = {"share_minus": minus, "share_zero": zero, "share_plus": 1 - minus - zero}
    return {"layer": name, "flip_rate": flips} | shares


def train(
    small: SimpleNamespace, setup: TrainingSetup, folder: Path, stop_at: int | None = None
) -> Telemetry:
    progress = small.StoppingProgress(folder / "events.jsonl", "train_qat")
    progress.stop_at = stop_at
    model = small.make_model("ternary", setup)
    return train_arm("ternary", model, setup, folder, progress).telemetry


def test_a_spike_is_far_above_the_median_and_told_once(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, loss_spike=1.5, window=4, action="lower_rate", least_factor=0.3)
    feed(guard, {1: 9.0, 2: 2.0, 3: 2.2, 4: 2.1})
    assert guard.telemetry.frame(TABLE).empty, "too few steps for a median"
    feed(guard, {5: 3.2, 6: 3.4, 7: 9.0})
    (row,) = guard.telemetry.frame(TABLE).to_dict("records")
    assert (row["step"], row["limit"], row["factor"]) == (6, "loss_spike", 0.5)
    assert row["value"] == pytest.approx(3.4 / 2.15)
    assert "is 0.5 times the schedule's" in row["text"]
    feed(guard, {8: 2.0, 9: 2.0, 10: 99.0, 11: 2.0, 12: 2.0, 13: 2.0, 14: 99.0})
    rows = guard.telemetry.frame(TABLE)
    assert rows["step"].tolist() == [6, 10, 14] and rows["factor"].tolist() == [0.5, 0.3, 0.3]
    assert "stays at its least" in rows["text"].iloc[-1]
    warnings = [
        e["text"] for e in follow(tmp_path / "events.jsonl", None) if e["kind"] == "warning"
    ]
    assert warnings == rows["text"].tolist()
    again = make_guard(tmp_path, loss_spike=1.5, window=4, action="lower_rate", least_factor=0.3)
    assert (again.factor, again._last_spike, list(again._losses)) == (
        0.3,
        14,
        [2.0, 2.0, 2.0, 99.0],
    )


def test_storms_and_dead_layers_are_named(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, one_value_share=0.9)
    guard.after_evaluation(5, [layer("a", 0.3, 0.4, None), layer("b", 0.3, 0.4, 0.5)])
    assert guard.telemetry.frame(TABLE).empty
    guard.after_evaluation(9, [layer("a", 0.04, 0.95, 0.1), layer("b", 0.3, 0.4, 0.65)])
    rows = guard.telemetry.frame(TABLE)
    assert rows["limit"].tolist() == ["flip_rate", "one_value_share"]
    assert "in 1 of 2 layers: b 65%" in rows["text"].iloc[0]
    assert "in 1 of 2 layers: a 95%" in rows["text"].iloc[1]
    assert guard.factor == 1.0, "it only warns"


def test_a_dead_layer_is_told_when_it_dies_and_brakes_once(tmp_path: Path) -> None:
    section = {"one_value_share": 0.9, "action": "lower_rate"}
    alive, dead = (0.3, 0.4, None), (0.04, 0.95, None)

    def evaluate(guard: StabilityGuard, step: int, **states: tuple[float, float, None]) -> None:
        rows = [{"step": step} | layer(name, *state) for name, state in states.items()]
        guard.telemetry.add("loss", [{"step": step, "loss": 1.0, "strength": 1.0}])
        guard.telemetry.add("layers", rows)
        guard.after_evaluation(step, rows)

    guard = make_guard(tmp_path, **section)
    evaluate(guard, 5, a=dead, b=alive)
    evaluate(guard, 9, a=dead, b=alive)
    assert guard.telemetry.frame(TABLE)["step"].tolist() == [5] and guard.factor == 0.5
    again = make_guard(tmp_path, **section)
    evaluate(again, 13, a=dead, b=dead)
    rows = again.telemetry.frame(TABLE)
    assert rows["step"].tolist() == [5, 13] and again.factor == 0.25
    assert "in 1 of 2 layers: b 95%" in rows["text"].iloc[1]
    evaluate(again, 17, a=alive, b=dead)
    evaluate(again, 21, a=dead, b=dead)
    assert again.telemetry.frame(TABLE)["step"].tolist() == [5, 13, 21]


def test_an_evaluation_before_the_threshold_is_fully_on_hides_no_dead_layer(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, one_value_share=0.9)
    guard.telemetry.add("loss", [{"step": 2, "loss": 1.0, "strength": 0.5}])
    guard.telemetry.add("layers", [{"step": 2} | layer("a", 0.04, 0.95, None)])
    again = make_guard(tmp_path, one_value_share=0.9)
    again.after_evaluation(5, [layer("a", 0.04, 0.95, None)])
    assert again.telemetry.frame(TABLE)["step"].tolist() == [5]


def test_a_lowered_rate_survives_a_kill_bit_for_bit(small: SimpleNamespace, tmp_path: Path) -> None:
    setup = small.make_setup(guard=EVERY_FLIP)
    straight = train(small, setup, tmp_path / "straight")
    guarded, loss = straight.frame(TABLE), straight.frame("loss").set_index("step")
    assert guarded["step"].tolist() == [12, 16, 20, 24], "the evaluations at full strength"
    assert guarded["factor"].tolist() == [0.5, 0.25, 0.2, 0.2]
    free = train(small, small.make_setup(), tmp_path / "free").frame("loss").set_index("step")
    assert (loss["lr"] / free["lr"]).round(9).tolist() == [1.0] * 12 + [0.5] * 4 + [0.25] * 4 + [
        0.2
    ] * 4
    assert (
        loss.loc[13, "loss"] == free.loc[13, "loss"]
        and loss.loc[14, "loss"] != free.loc[14, "loss"]
    )
    with pytest.raises(small.Stopped):
        train(small, setup, tmp_path / "killed", stop_at=18)
    resumed = train(small, setup, tmp_path / "killed")
    for table in ("loss", TABLE):
        here, there = (
            t.frame(table).drop(columns="seconds", errors="ignore") for t in (straight, resumed)
        )
        pd.testing.assert_frame_equal(here, there, check_exact=True)
    assert (tmp_path / "straight" / FINAL).read_bytes() == (
        tmp_path / "killed" / FINAL
    ).read_bytes()


def test_a_stop_names_the_limit_and_the_last_whole_checkpoint(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    setup = small.make_setup(guard=EVERY_FLIP | {"action": "stop"})
    with pytest.raises(StageError, match="codes changed since the last evaluation") as caught:
        train(small, setup, tmp_path)
    for word in ("ternary, step 12", "model.layers.0.self_attn.q_proj", "checkpoint-10"):
        assert word in str(caught.value)
    assert "train.guard.flip_rate 0" in caught.value.allowed
    assert not (tmp_path / FINAL).exists() and (tmp_path / "checkpoints" / "checkpoint-10").is_dir()


def test_a_guard_that_is_off_sees_nothing(small: SimpleNamespace, tmp_path: Path) -> None:
    setup = small.make_setup(steps=6, guard=EVERY_FLIP | {"action": "off"})
    assert train(small, setup, tmp_path).frame(TABLE).empty
