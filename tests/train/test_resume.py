"""A training killed again and again ends exactly like one that was never stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import safetensors.torch
import torch

from workbench.records.events import Progress
from workbench.train.arm import FINAL, train_arm
from workbench.train.checkpoints import MARKER, is_whole, last_whole, mark_whole
from workbench.train.telemetry import Telemetry

TABLES = ("loss", "evaluations", "layers", "histograms")


@pytest.fixture(scope="module")
def straight(small: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    setup = small.make_setup()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    progress = Progress(folder / "events.jsonl", "train_qat")
    train_arm("ternary", small.make_model("ternary", setup), setup, folder, progress)
    torch.set_num_threads(threads)
    return folder


def table(folder: Path, name: str) -> pd.DataFrame:
    return Telemetry(folder / "telemetry", step=10**9).frame(name)


@pytest.mark.slow
def test_sigkill_at_many_moments_changes_no_bit(straight: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    endings = json.loads(done.stdout)
    assert endings[:7] == ["killed"] * 7 and endings[-1] == "exit 0", done.stderr
    for name in TABLES:
        there, here = table(straight, name), table(tmp_path, name)
        unequal_times = ["seconds"] if name == "loss" else []
        pd.testing.assert_frame_equal(
            there.drop(columns=unequal_times), here.drop(columns=unequal_times), check_exact=True
        )
    assert (straight / FINAL).read_bytes() == (tmp_path / FINAL).read_bytes()


def test_every_step_has_one_row_and_phases_follow_each_other(straight: Path) -> None:
    loss = table(straight, "loss")
    assert loss["step"].tolist() == list(range(1, 25))
    assert loss["tokens"].tolist() == [step * 2 * 16 for step in range(1, 25)]
    assert loss["phase"].drop_duplicates().tolist() == ["warmup", "threshold", "finetune"]
    assert loss["strength"].is_monotonic_increasing and loss["strength"].iloc[-1] == 1.0
    evaluated = table(straight, "evaluations")
    assert evaluated.groupby("weights")["step"].apply(list).to_dict() == {
        "ternary": [4, 8, 12, 16, 20, 24],
        "master": [4, 8, 12, 16, 20, 24],
    }


def test_layers_are_watched(straight: Path) -> None:
    layers, histograms = table(straight, "layers"), table(straight, "histograms")
    shares = layers[["share_minus", "share_zero", "share_plus"]]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-6)
    first = layers["step"] == 4
    assert layers.loc[first, "flip_rate"].isna().all()
    assert layers.loc[~first, "flip_rate"].between(0, 1).all()
    assert layers.loc[~first, "flip_rate"].sum() > 0
    weights = safetensors.torch.load_file(straight / FINAL)
    for layer, rows in layers.groupby("layer"):
        weight = weights[f"{layer}.weight"].abs()
        scale = rows["scale"].to_numpy()
        assert scale[-1] == pytest.approx(float(weight.mean()), rel=1e-5)
        distance = float((weight / weight.mean() - 0.5).abs().mean())
        assert rows["threshold_distance"].iloc[-1] == pytest.approx(distance, rel=1e-5)
        assert rows["scale_drift"].isna().tolist() == [True] + 5 * [False]
        assert rows["scale_drift"].to_numpy()[1:] == pytest.approx(scale[1:] / scale[:-1] - 1)
        assert rows["scale_drift_total"].to_numpy()[1:] == pytest.approx(scale[1:] / scale[0] - 1)
    total = table(straight, "loss").set_index("step").loc[layers["step"].unique(), "grad_norm"]
    of_layers = layers.groupby("step")["grad_norm"].apply(lambda norms: (norms**2).sum() ** 0.5)
    assert (0.2 * total < of_layers).all() and (of_layers < total).all()
    for (_, layer), rows in histograms.groupby(["step", "layer"]):
        size = weights[f"{layer}.weight"].numel()
        assert rows.groupby("kind")["count"].sum().to_dict() == {"master": size, "ternary": size}


def test_the_end_of_each_pass_over_the_corpus_is_evaluated_too(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    sequences = len(small.make_setup().tokens) // small.SEQUENCE_LENGTH
    setup = small.make_setup(steps=7, batch_size=sequences // 2, evaluations=3)
    progress = Progress(tmp_path / "events.jsonl", "train_qat")
    evaluator = train_arm("ternary", small.make_model("ternary", setup), setup, tmp_path, progress)
    layers = evaluator.telemetry.frame("layers").drop_duplicates("step")
    ends = [step for step in range(1, 8) if step * setup.train.batch_size >= sequences]
    assert ends[0] in layers["step"].tolist() and {2, 5, 7} < set(layers["step"])
    epochs = layers["step"] * setup.train.batch_size / sequences
    assert layers["epoch"].to_numpy() == pytest.approx(epochs.to_numpy())


def test_a_finished_arm_is_loaded_and_not_trained(
    straight: Path, small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.train.arm.ArmTrainer.train", lambda *_, **__: pytest.fail())
    before = table(straight, "loss")
    setup = small.make_setup()
    model = small.make_model("ternary", setup)
    train_arm("ternary", model, setup, straight, Progress(straight / "e.jsonl", "train_qat"))
    weights = safetensors.torch.load_file(straight / FINAL)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    pd.testing.assert_frame_equal(before, table(straight, "loss"))


def test_a_checkpoint_counts_only_with_all_its_bytes(tmp_path: Path) -> None:
    for step, size in ((5, 100), (10, 100), (15, 100), (20, 100)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * size)
        mark_whole(folder)
    (tmp_path / "checkpoint-20" / MARKER).unlink()
    (tmp_path / "checkpoint-15" / "weights").write_bytes(b"x" * 99)
    assert is_whole(tmp_path / "checkpoint-10")
    assert last_whole(tmp_path) == (tmp_path / "checkpoint-10", 10)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-5", "checkpoint-10"}
    assert last_whole(tmp_path / "checkpoint-5") is None
