"""Losses of single layers with their intervals, kept piece by piece."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from torch import nn

import workbench.hybrid.evaluator as evaluator_module
from workbench.hybrid.base import Base
from workbench.hybrid.evaluator import PlanEvaluator
from workbench.hybrid.sensitivity import measure_options
from workbench.measure.paired_bootstrap import PairedBootstrap
from workbench.records.events import Progress
from workbench.ternary import ThresholdVersion

EXTRA_BITS = {"int8": 0.0, "ternary": 0.2}
"""Bits a byte that a layer loses in the mean, in each precision."""


class Judged(nn.Module):
    """Two layers, whose number of bits says what they lose."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


class Coarse(nn.Linear):
    precision = ""


def base_of() -> Base:
    model = Judged()

    def form(layer: str, precision: str) -> nn.Module:
        coarse = Coarse(8, 8)
        coarse.precision = precision
        return coarse

    units = {"a": ["a"], "b": ["b"]}
    return Base("checkpoint", model, "high_precision", units, form, ThresholdVersion())


def pieces(count: int) -> pd.DataFrame:
    """Two of each document."""
    return pd.DataFrame({"id": [f"d{i // 2}@{i % 2}" for i in range(2 * count)]})


@pytest.fixture
def judging(monkeypatch):
    """Losses as drawn: hard documents for every model, the change's own scatter, no network."""

    def losses(model: nn.Module, tokenizer: None, texts: pd.DataFrame, context: int):
        random = np.random.default_rng(3)
        size = random.integers(200, 900, len(texts))
        bits = random.gamma(4, 0.5, len(texts))
        for layer in (model.a, model.b):
            if isinstance(layer, Coarse):
                scatter = np.random.default_rng(len(layer.precision)).normal(0, 0.05, len(texts))
                bits = bits + EXTRA_BITS[layer.precision] + scatter
        nats = np.log(2) * bits * size
        return pd.DataFrame({"id": texts["id"], "nats": nats, "bytes": size})

    monkeypatch.setattr(evaluator_module, "document_losses", losses)


def test_a_loss_has_the_interval_of_a_paired_bootstrap_over_documents(judging, tmp_path) -> None:
    evaluator = PlanEvaluator(None, pieces(70), 32, tmp_path / "rows.jsonl")
    base = base_of()
    found = evaluator.loss(base, {"a": "ternary"})
    assert found.n == 70, "documents, not their pieces"
    assert found.value == pytest.approx(evaluator(base, {"a": "ternary"}) - evaluator(base, {}))
    assert found.lo < 0.2 < found.hi and found.lo > 0.15, "what is hard for both models cancels"
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    frames = [
        pd.DataFrame({"arm": arm, "seed": 0, "id": pieces(70)["id"], "nats": row["nats"],
                      "bytes": row["bytes"]})
        for arm, row in zip(("own", "changed"), rows, strict=True)
    ]  # fmt: skip
    paired = PairedBootstrap(pd.concat(frames, ignore_index=True))
    again = paired.estimate(lambda bits: bits["changed"] - bits["own"])
    assert (found.lo, found.hi) == pytest.approx((again.lo, again.hi), abs=0.005)


def test_every_option_has_its_interval_and_noise_holds_zero(judging, tmp_path) -> None:
    evaluator = PlanEvaluator(None, pieces(70), 32, tmp_path / "rows.jsonl")
    precisions = ["ternary", "int8", "high_precision"]
    progress = Progress(tmp_path / "events.jsonl", "hybrid_plan")
    options = measure_options(base_of(), evaluator, precisions, progress)
    of = {(option.unit, option.precision): option for option in options}
    for unit in ("a", "b"):
        assert of[unit, "ternary"].lo > 0
        assert of[unit, "int8"].lo < 0 < of[unit, "int8"].hi
        own = of[unit, "high_precision"]
        assert (own.quality_loss, own.lo, own.hi, own.measured) == (0.0, None, None, False)


def test_too_few_documents_give_no_interval_and_say_so(judging, tmp_path) -> None:
    found = PlanEvaluator(None, pieces(20), 32, tmp_path / "r").loss(base_of(), {"a": "ternary"})
    assert found.lo is None and found.value == pytest.approx(0.2, abs=0.05)
    assert found.reason == "no interval: 20 groups, a bootstrap needs 64"


def test_what_was_kept_without_pieces_is_evaluated_again(judging, tmp_path) -> None:
    path, base = tmp_path / "rows.jsonl", base_of()
    PlanEvaluator(None, pieces(70), 32, path).loss(base, {"a": "ternary"})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{k: v for k, v in row.items() if k not in ("nats", "bytes")} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in (old[0], rows[1])))
    again = PlanEvaluator(None, pieces(70), 32, path)
    assert len(again.known) == 1
    assert again.loss(base, {"a": "ternary"}).lo > 0
    assert len(path.read_text().splitlines()) == 3
