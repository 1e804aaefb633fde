"""Training speed: the rows, the turns the arms take, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from workbench.bench import train
from workbench.errors import ConfigError


@pytest.fixture
def no_speed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Blocks of known length: the ternary arm takes 1.25 times as long."""
    turns: list[str] = []

    def seconds(self: train.TimedModel, steps: int) -> float:
        ternary = any("BitLinear" in type(m).__name__ for m in self.model.modules())
        if steps != train.WARM_STEPS:
            turns.append("ternary" if ternary else "dense")
        return steps * (1.25 if ternary else 1.0)

    monkeypatch.setattr(train.TimedModel, "seconds", seconds)
    return turns


def test_the_ratio_is_made_within_pairs_of_blocks_that_take_turns(
    no_speed: list[str], tmp_path: Path
) -> None:
    said: list[str] = []
    settings = {"batch": 2, "sequence": 8, "vocab": 64, "pairs": 6, "steps": 3, "as_json": True}
    rows = train.bench_train("tiny-1m", **settings, out=tmp_path / "rows.jsonl", say=said.append)
    kept = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["value"] for row in kept] == [json.loads(line)["value"] for line in said]
    assert all(row["commit"] and row["machine"] and row["date"] for row in kept)
    assert no_speed == ["dense", "ternary", "ternary", "dense"] * 3
    dense, ternary, ratio = (json.loads(line) for line in said)
    assert dense["value"] == pytest.approx(16.0) and ternary["value"] == pytest.approx(12.8)
    assert ratio["name"] == "training_speed_ratio" and ratio["unit"] == "ratio"
    assert (ratio["value"], ratio["lo"], ratio["hi"]) == pytest.approx((0.8, 0.8, 0.8))
    assert ratio["n"] == 6 and rows[-1].value == pytest.approx(0.8)


def test_real_steps_are_timed_and_train_the_ternary_arm() -> None:
    said: list[str] = []
    rows = train.bench_train(
        "tiny-1m", batch=1, sequence=8, vocab=64, pairs=2, steps=1, say=said.append
    )
    assert all(math.isfinite(row.value) and row.value > 0 for row in rows)
    assert said[0] == train.HEADER and len(said) == 4


def test_wrong_wishes_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean tiny-2m"):
        train.bench_train("tiny-2n")
    with pytest.raises(ConfigError, match="--pairs 0"):
        train.bench_train(pairs=0)
