"""A trained model made ternary without training: the arm that says what training buys.

Where the ternary arm starts from compensated codes (``train.compensated_start``), so is this model
made: the best that can be had without a step, calibrated on the same sequences. Elsewhere each
layer is rounded for itself, by least squares.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from workbench.pilot.sections.model import Model
from workbench.records.events import Progress
from workbench.ternary import ConversionReport, ThresholdVersion, to_ternary
from workbench.ternary.post_training import (
    CALIBRATION_SEQUENCES,
    require_finite,
    ternarize_post_training,
)
from workbench.train.compensated_start import compensated_by
from workbench.train.setup import TrainingSetup

WHAT = "post-training"
"""As progress and notes call it."""


def ternarize_untrained(
    model: PreTrainedModel, section: Model, setup: TrainingSetup, progress: Progress
) -> ConversionReport:
    """Change ``model`` in place, with a scale for each row; the report's threshold is the rule by
    which its layers are packed.

    Raises ConfigError when no layer would become ternary or a weight is not finite.
    """
    policy, activations = section.policy, section.activations
    if setup.train.compensated_start.sequences:
        threshold = ThresholdVersion("absmean", "row")
        report = to_ternary(model, policy, threshold, activations)
        require_finite(model, report.named("ternary"))
        compensated_by(model, setup, WHAT, progress)
        return report
    ids_BT = setup.first_sequences(CALIBRATION_SEQUENCES).to(model.device)
    return ternarize_post_training(
        model, policy, activations=activations, calibration=ids_BT.split(4)
    )
