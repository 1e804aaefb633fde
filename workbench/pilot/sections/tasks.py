"""``tasks``: files of questions with known answers, scored by what an arm finds likely."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.pilot.sections.base import Count, Section, input_path


class Task(Section):
    """Multiple choice and cloze by log-likelihood: nothing is generated, so a model that cannot
    chat can be asked too. Accuracy is compared with full precision on the same rows."""

    file: input_path() = Field(  # type: ignore[valid-type]
        description="JSONL, one row each. Multiple choice: `question` (asked as `Question: ... "
        "Answer:`) or `context` (as it is), `choices`, `answer` (the right one's text, or its "
        "number from 0). Cloze: `context`, `target`. Optional `id`. A space is put in where "
        "one is missing"
    )
    normalise: Literal["none", "bytes"] = Field(
        "none",
        description="of multiple choice: none takes the choice with the largest log-likelihood, "
        "bytes the one with the largest per UTF-8 byte, so that long choices are not at a "
        "disadvantage; the table has both",
    )
    most: Count = Field(200, description="rows taken, from the first on")
