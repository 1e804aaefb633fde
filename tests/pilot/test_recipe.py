"""The recipe for a checkpoint: what it decides, where it says so, and that the user's word wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.pilot.recipe import RATES, SOURCE
from workbench.pilot.resolve import ResolvedPilot, resolve, resolved_from

TEXT = """# Question
# Command
extends: workbench:base
name: own
question: does it resolve?
model: {{checkpoint: {checkpoint}}}
{more}
"""


@pytest.fixture
def pilot(tmp_path: Path):
    (tmp_path / "model").mkdir()

    def made(more: str = "", *overrides: str, checkpoint: str = "model") -> ResolvedPilot:
        path = tmp_path / "own.yaml"
        path.write_text(TEXT.format(checkpoint=checkpoint, more=more))
        return resolve(path, overrides)

    return made


def test_a_checkpoint_is_taught_by_itself_without_decay_or_long_warm_up(pilot) -> None:
    resolved = pilot()
    train = resolved.pilot.train
    assert train.distillation.teacher == "checkpoint" and train.distillation.alpha >= 0.9
    decays = [train.weight_decay, *(p.weight_decay for p in (train.threshold, train.finetune))]
    assert decays == [0.0, 0.0, 0.0]
    assert train.warmup.share == 0.0 and train.threshold.share <= 0.1
    assert train.rate_sweep.rates == RATES and train.lr <= 1e-3
    assert resolved.pilot.model.threshold.granularity == "row"
    sources = {name: source for name, _, source in resolved.leaves()}
    assert sources["train.distillation.teacher"] == SOURCE
    assert sources["model.threshold.granularity"] == SOURCE
    assert sources["train.steps"] == "default"


def test_a_checkpoint_starts_from_compensated_codes_and_is_ternary_at_once(pilot) -> None:
    resolved = pilot()
    train = resolved.pilot.train
    assert train.compensated_start.sequences == 64 and train.threshold.share == 0.0
    sources = {name: source for name, _, source in resolved.leaves()}
    assert sources["train.compensated_start.sequences"] == SOURCE


@pytest.mark.parametrize(
    "said",
    [
        "train.threshold.share=0.2",
        "train.warmup.share=0.1",
        "train.compensated_start.sequences=0",
        "model.threshold.rule=learned",
        "model.sub_norm=true",
    ],
)
def test_another_way_to_ternary_weights_keeps_the_ramp(pilot, said: str) -> None:
    train = pilot("", said).pilot.train
    assert train.compensated_start.sequences == 0 and train.threshold.share >= 0.1


def test_who_names_only_the_calibration_text_need_not_name_the_threshold(pilot) -> None:
    train = pilot("", "train.compensated_start.sequences=128").pilot.train
    assert train.compensated_start.sequences == 128 and train.threshold.share == 0.0


def test_a_compensated_start_with_a_ramp_is_refused(pilot) -> None:
    both = ("train.compensated_start.sequences=8", "train.threshold.share=0.1")
    with pytest.raises(ConfigError, match=r"threshold\.share 0\.1 must be 0"):
        pilot("", *both)


def test_without_a_checkpoint_nothing_changes(pilot) -> None:
    train = pilot("", checkpoint="null").pilot.train
    assert train.distillation.teacher == "full_precision", "of workbench:base"
    assert train.rate_sweep.rates == [] and train.warmup.share == 0.5


def test_what_the_pilot_says_wins_field_by_field(pilot) -> None:
    resolved = pilot(
        "train: {distillation: {teacher: none}, threshold: {}}", "train.betas=[0.9,0.9]"
    )
    train = resolved.pilot.train
    assert train.distillation.teacher == "none" and train.distillation.alpha == 0.9
    assert train.betas == [0.9, 0.9] and train.threshold.share == 0.0
    sources = {name: source for name, _, source in resolved.leaves()}
    assert sources["train.distillation.teacher"].endswith("own.yaml:7")
    assert sources["train.distillation.alpha"] == SOURCE


@pytest.mark.parametrize("field", ["lr", "ternary_lr"])
def test_who_names_a_rate_needs_no_sweep(pilot, field: str) -> None:
    assert pilot("", f"train.{field}=2e-4").pilot.train.rate_sweep.rates == []


def test_a_run_goes_on_with_what_it_resolved(pilot, tmp_path: Path) -> None:
    resolved = pilot("", "train.ternary_lr=2e-4", "train.warmup.share=0.25")
    again = resolved_from(resolved.values, tmp_path / "own.yaml")
    assert again.pilot == resolved.pilot and again.pilot.train.warmup.share == 0.25
