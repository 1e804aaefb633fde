"""The arm without training: as good a start as the ternary arm's, where that starts compensated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from workbench.errors import ConfigError
from workbench.pilot.sections.model import Model
from workbench.records.events import Progress
from workbench.ternary.packed import load_packed, save_packed
from workbench.train.arm import train_arm
from workbench.train.quality import bits_per_byte, document_losses
from workbench.train.untrained import ternarize_untrained

TERNARY_AT_ONCE = {"warmup": {"share": 0.0}, "threshold": {"share": 0.0}}


def test_compensated_it_loses_less_and_is_packed_as_it_was_judged(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    progress = Progress(tmp_path / "events.jsonl", "t")
    taught = small.make_setup(steps=60, lr=4e-3)
    model = small.make_model("full_precision", taught)
    train_arm("full_precision", model, taught, tmp_path / "taught", progress)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    losses = {}
    for sequences in (0, 32):
        start = {"compensated_start": {"sequences": sequences}}
        setup = small.make_setup(**start, **(TERNARY_AT_ONCE if sequences else {}))
        model = small.make_model("full_precision", setup)
        model.load_state_dict(state)
        report = ternarize_untrained(model, Model(preset="smoke"), setup, progress)
        assert report.threshold.rule == ("absmean" if sequences else "least_squares")
        judged = document_losses(model, setup.tokenizer, setup.excerpts, setup.sequence_length)
        losses[sequences] = bits_per_byte(judged)
        folder = tmp_path / str(sequences)
        save_packed(model, folder, report.precisions, report.threshold)
        again = document_losses(
            load_packed(folder), setup.tokenizer, setup.excerpts, setup.sequence_length
        )
        # Embeddings and head become INT8 when it is packed.
        assert bits_per_byte(again) == pytest.approx(losses[sequences], abs=0.02)
    assert losses[32] < losses[0] - 0.02
    assert "post-training: " in (tmp_path / "events.jsonl").read_text(encoding="utf-8")


def test_weights_that_are_not_finite_are_named(small: SimpleNamespace, tmp_path: Path) -> None:
    setup = small.make_setup(compensated_start={"sequences": 8}, **TERNARY_AT_ONCE)
    model = small.make_model("full_precision", setup)
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.up_proj").weight[1, 1] = float("nan")
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        ternarize_untrained(model, Model(preset="smoke"), setup, Progress(tmp_path / "e", "t"))
