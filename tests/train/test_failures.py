"""What a user reads when a training breaks, and that nothing whole is lost then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from workbench.errors import ConfigError, StageError
from workbench.records.events import Progress, follow
from workbench.train.arm import train_arm
from workbench.train.checkpoints import last_whole
from workbench.train.disk_space import reporting_full_disk
from workbench.train.setup import TrainingSetup
from workbench.train.telemetry import Telemetry

POISONED = "model.layers.1.mlp.up_proj"


def train(small: SimpleNamespace, setup: TrainingSetup, folder: Path, arm: str = "ternary") -> None:
    progress = Progress(folder / "events.jsonl", "train_qat")
    train_arm(arm, small.make_model(arm, setup), setup, folder, progress)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eighth optimizer step sees a gradient that is not a number."""
    from workbench.train.trainer import ArmTrainer

    real = ArmTrainer.training_step

    def step(self: ArmTrainer, *args: object) -> torch.Tensor:
        if self.state.global_step == 7:
            weight = self.model.get_submodule(POISONED).weight
            weight.register_hook(lambda gradient: gradient * torch.nan)
        return real(self, *args)

    monkeypatch.setattr(ArmTrainer, "training_step", step)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("arm", "phase", "field"),
    [
        ("ternary", "threshold (strength", "train.ternary_lr"),
        ("full_precision", "full_precision", "train.lr"),
    ],
)
def test_a_gradient_that_is_not_finite_stops_with_the_last_good_checkpoint(
    small: SimpleNamespace, tmp_path: Path, arm: str, phase: str, field: str
) -> None:
    with pytest.raises(StageError) as caught:
        train(small, small.make_setup(), tmp_path, arm)
    message = str(caught.value)
    named = f"1 of 20 gradients are not finite: {POISONED}.weight"
    for word in (arm, "step 8", phase, named, f"lower {field} (now 0.001)", "checkpoint-5"):
        assert word in message
    assert last_whole(tmp_path / "checkpoints") == (tmp_path / "checkpoints" / "checkpoint-5", 5)
    rows = Telemetry(tmp_path / "telemetry", 10**9).frame("loss")
    assert rows["step"].tolist() == list(range(1, 8))


def test_an_exploding_learning_rate_is_a_stage_error_too(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    setup = small.make_setup(lr=1e30, lr_warmup_share=0.0, evaluations=1)
    with pytest.raises(StageError, match=r"broke at step \d+.*learning rate \S+e\+(29|30)"):
        train(small, setup, tmp_path)


@pytest.mark.parametrize("file", ["optimizer.pt", "trainer_state.json"])
@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="/dev/full is Linux's")
def test_a_full_disk_is_named_and_the_checkpoint_before_stays(
    small: SimpleNamespace, tmp_path: Path, file: str
) -> None:
    broken = tmp_path / "checkpoints" / "checkpoint-10"
    progress = Progress(tmp_path / "events.jsonl", "train_qat")

    def fill_the_disk(event: dict[str, object]) -> None:
        if not broken.exists():
            broken.mkdir(parents=True)
            (broken / file).symlink_to("/dev/full")

    progress.listener = fill_the_disk
    setup = small.make_setup()
    with pytest.raises(StageError, match="no space left on the disk"):
        train_arm("ternary", small.make_model("ternary", setup), setup, tmp_path, progress)
    train(small, setup, tmp_path)
    assert any("goes on from step 5" in e.get("text", "") for e in follow(progress.path, None))


def test_the_writer_of_the_weights_has_its_own_words_for_a_full_disk(tmp_path: Path) -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(StageError, match="no space left"), reporting_full_disk(tmp_path):
        raise SafetensorError(text)
    with pytest.raises(RuntimeError, match="another"), reporting_full_disk(tmp_path):
        raise RuntimeError("another fault")


def test_too_little_space_is_said_before_the_first_step(
    small: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(total=1, used=1, free=1000)
    monkeypatch.setattr("workbench.train.disk_space.shutil.disk_usage", lambda _: free)
    with pytest.raises(StageError, match=r"checkpoints of .* parameters need .* are free"):
        train(small, small.make_setup(), tmp_path)


def test_an_unknown_optimizer_lists_those_there_are(small: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adamw_torch_fused"):
        train(small, small.make_setup(optimizer="adamw_torhc"), tmp_path)


def test_a_corpus_shorter_than_one_step_is_refused(small: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too short"):
        train(small, small.make_setup(batch_size=4000), tmp_path)


def test_training_prints_nothing(
    small: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(small, small.make_setup(steps=6), tmp_path)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
