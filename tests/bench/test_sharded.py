"""Shards beside the whole model: the rows, what they are made of, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from workbench.bench import sharded
from workbench.errors import ConfigError, StageError
from workbench.ternary import ThresholdVersion
from workbench.ternary.bitlinear import BitLinear


def training(losses: list[float], seconds: float, digests: list[int], batches: int = 1):
    loss = pd.DataFrame({"loss": losses, "seconds": seconds, "batch": batches})
    loss["gathered_bytes"], loss["reduced_bytes"] = 150, 75
    names = [f"layer{place % 2}" for place in range(len(digests))]
    return sharded._Training(loss, pd.DataFrame({"layer": names, "digest": digests}), 100)


def test_rows_say_how_far_shards_are_from_the_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def trained(preset: str, setup: object, folder: Path, launch: dict) -> object:
        asked.append((launch, setup.train.batch_size, setup.train.gradient_accumulation))
        if not launch:
            return training([3.0, 2.0, 1.0, 1.0], 0.4, [5, 6])
        last = 1.0 + (4e-6 if launch["strategy"] == "fsdp" else 3e-6)
        return training([3.0, 2.0, 1.0, last], 0.25, [5, 6, 5, 7])

    monkeypatch.setattr(sharded, "_trained", trained)
    out = tmp_path / "rows.jsonl"
    rows = sharded.bench_sharded("tiny-1m", processes=(2,), steps=5, batch=4, sequence=32, out=out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    launches = [{}, *({"processes": 2, "strategy": each} for each in ("fsdp", "ddp"))]
    assert asked == [(launch, 2, 2) for launch in launches]
    difference, codes, gathered, efficiency = rows
    assert difference["value"] == pytest.approx(4e-6) and difference["target"] == 1e-5
    assert difference["without_shards"] == pytest.approx(3e-6)
    assert (codes["value"], codes["layers"], codes["target"]) == (1, 2, 0)
    assert (gathered["value"], gathered["over_weights"]) == (150, 1.5)
    assert efficiency["value"] == pytest.approx(0.4 / (2 * 0.25))
    assert all(row["commit"] and row["machine"] and row["date"] for row in rows)


def test_a_digest_that_is_missing_is_no_agreement() -> None:
    whole = training([1.0] * 4, 0.1, [5, 6])
    with pytest.raises(StageError, match="digests of 3 layers were taken, not of each of 2 by"):
        sharded._rows("tiny-1m", 2, whole, training([1.0] * 4, 0.1, [5, 6, 5]), whole)
    with pytest.raises(StageError, match="other batches"):
        sharded._rows("tiny-1m", 2, whole, training([1.0] * 4, 0.1, [5, 6, 5, 6], batches=2), whole)


def test_a_layer_is_digested_once_by_codes_and_scale(tmp_path: Path) -> None:
    layer = BitLinear(8, 4, threshold=ThresholdVersion())
    seen = sharded.FirstCodes("a", tmp_path / "codes.jsonl")
    layer.register_forward_pre_hook(seen)
    layer(torch.ones(1, 8))
    layer(torch.ones(1, 8))
    doubled = sharded.FirstCodes("b", tmp_path / "codes.jsonl")
    with torch.no_grad():
        layer.weight.mul_(2)  # the same codes, another scale
    doubled(layer, ())
    rows = [json.loads(line) for line in (tmp_path / "codes.jsonl").read_text().splitlines()]
    assert [row["layer"] for row in rows] == ["a", "b"]
    assert rows[0]["digest"] != rows[1]["digest"]


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tiny-1k.*unknown"):
        sharded.bench_sharded("tiny-1k")
    with pytest.raises(ConfigError, match="--processes 3: they cannot share 8 sequences"):
        sharded.bench_sharded("small", processes=(3,))
