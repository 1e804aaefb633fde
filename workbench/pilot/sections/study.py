"""``study``: several trainings of one pilot, compared with each other (``workbench study``)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from workbench.pilot.sections.base import Count, Positive, Section

PilotValues = dict[str, Any]
Seeds = Annotated[list[int], Field(min_length=1)]


class Recipe(Section):
    """``workbench study recipe``: one network, equal tokens, several ways to make it ternary.

    Every arm is the pilot's ``train`` and ``model`` with a few values changed; ``default`` is
    the ternary arm as the pilot says it.
    """

    arms: dict[str, PilotValues] = Field(
        {}, description="name of a ternary arm -> its sections train and model, as far as they "
        "differ from the pilot"
    )  # fmt: skip


class CheckpointStudy(Section):
    """``workbench study checkpoint``: one checkpoint, equal tokens, several ways to ternary.

    Every arm is the pilot's ``train`` and ``model`` with a few values changed; ``default`` is the
    recipe for a checkpoint as the pilot says it.
    """

    arms: dict[str, PilotValues] = Field(
        {}, description="name of a ternary arm -> its sections train and model, as far as they "
        "differ from the pilot; lambda_warmup is what the headline compares with"
    )  # fmt: skip


class Parity(Section):
    """``workbench study parity``: ternary networks of several widths against one precise one."""

    full_width: Count = Field(64, description="hidden size of the full-precision network")
    widths: list[int] = Field([64, 80, 96, 128], min_length=3, description="of the ternary ones")


class Size(Section):
    """``workbench study size``: both arms at several sizes."""

    widths: list[int] = Field([32, 48, 64, 96], min_length=3, description="hidden sizes")
    tokens_per_parameter: Positive | None = Field(
        None, description="of every size, instead of train.steps; null: train.steps for all"
    )


class Study(Section):
    """Trainings compared with each other. Widths keep the proportions of ``model``: layers and
    the size of a head stay, the feed-forward width and the number of heads follow."""

    seeds: Seeds = Field([1234], description="each arm is trained once for each")
    width_lr_power: float = Field(
        0.0, ge=0, description="a width's rates are those of train times (model's / it)^power"
    )
    recipe: Recipe = Recipe()
    parity: Parity = Parity()
    size: Size = Size()
    checkpoint: CheckpointStudy = CheckpointStudy()
