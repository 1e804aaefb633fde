"""What each layer alone costs: the quality lost when only it changes its precision.

    quality_loss(unit, precision) = bits per byte(base with that unit in that precision)
                                    - bits per byte(base as it was trained)

A negative loss is quality recovered. Losses of single layers do not add up exactly; they only
order the steps of a plan, and every plan is measured as a whole. Each has a 95 % interval over the
documents of the text, resampled in pairs, where they are enough for one; a layer whose interval
holds 0 loses nothing that this text can show.
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench.hybrid.base import Base
from workbench.hybrid.evaluator import PlanEvaluator
from workbench.hybrid.plan import Option
from workbench.records.events import Progress
from workbench.ternary.policy import PLANNED, Precision


def measure_options(
    base: Base, evaluator: PlanEvaluator, precisions: Sequence[Precision], progress: Progress
) -> list[Option]:
    """Every unit in every allowed precision.

    For a ternary base INT8 and INT4 are measured only where the unrounded master weights recover
    something (or may not be used): rounding them cannot help where they do not.
    """
    options = []
    for unit in progress.each(f"sensitivity of {base.name}", base.units, "layers"):
        losses: dict[Precision, float] = {}
        for precision in sorted(precisions, key=PLANNED.index, reverse=True):
            if precision == base.own:
                options.append(
                    Option(unit, precision, 0.0, base.size_bytes(unit, precision), False)
                )
            elif not (
                base.own == "ternary"
                and precision in ("int8", "int4")
                and losses.get("high_precision", -1.0) >= 0
            ):
                loss = evaluator.loss(base, {unit: precision})
                assert loss.value is not None, "the losses are finite"
                losses[precision], size = loss.value, base.size_bytes(unit, precision)
                options.append(Option(unit, precision, loss.value, size, lo=loss.lo, hi=loss.hi))
    return options
