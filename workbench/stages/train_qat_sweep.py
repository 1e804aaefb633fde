"""The rate of the ternary arm, found by a short sweep before the arm is trained."""

from __future__ import annotations

from transformers import PreTrainedModel

from workbench.data.tokenizer import vocabulary_size
from workbench.model.build import build_model
from workbench.stages.context import StageContext
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.train.int8_gradients import set_int8_gradients
from workbench.train.quiet import quiet_transformers
from workbench.train.rate_sweep import best_rate, sweep_rates, with_best_rate
from workbench.train.setup import TrainingSetup

TABLE = "rate_sweep"


def at_best_rate(
    context: StageContext, setup: TrainingSetup, teacher: PreTrainedModel | None
) -> TrainingSetup:
    """``setup`` at the rate that ``train.rate_sweep`` finds.

    The rates tried become the table ``rate_sweep``; which was taken, and what that cost, a note.
    """
    section = context.pilot.model
    threshold = ThresholdVersion.from_section(section.threshold)

    def fresh() -> PreTrainedModel:
        rows, length = vocabulary_size(setup.tokenizer), setup.sequence_length
        with quiet_transformers():
            model = build_model(section, rows, length, setup.seed, setup.device)
        to_ternary(model, section.policy, threshold, section.activations, section.sub_norm)
        set_int8_gradients(model, setup.train.int8_gradients)
        return model

    found = sweep_rates(fresh, setup, context.folder / TABLE, context.progress, teacher)
    context.record.save_table(TABLE, found)
    context.note(best_rate(found)[1])
    return with_best_rate(setup, found)
