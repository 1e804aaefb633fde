"""Questions with known answers, from a JSONL file: multiple choice, and cloze."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from workbench.data.asked_file import AskedRow, FilledText, read_asked
from workbench.pilot.sections.tasks import Task

OPENING, CLOSING = "([{", ".,;:!?)]}%'’"
"""Characters with no space behind them, and with none before them."""


class TaskRow(AskedRow):
    """``choices`` with their ``answer``, or a ``target``; behind a ``question``, a ``context``, or
    both.

    Scored is the likelihood of each choice, or of the target, after :attr:`asked`.
    """

    question: FilledText | None = None
    context: FilledText | None = None
    choices: list[FilledText] | None = Field(None, min_length=2)
    answer: int | str | None = None
    target: FilledText | None = None

    @model_validator(mode="after")
    def one_kind(self) -> TaskRow:
        if self.question is None and self.context is None:
            raise ValueError("give question or context")
        if not self.asked.strip():
            raise ValueError("context: blank; a text is needed that choices or target follow")
        if self.choices is None:
            if self.target is None or self.answer is not None or self.question is not None:
                raise ValueError("give choices with answer, or context with target")
            return self
        if self.target is not None or self.answer is None:
            raise ValueError("give answer beside choices, and no target")
        if len(set(self.choices)) != len(self.choices):
            raise ValueError("choices: each must be there once")
        if isinstance(self.answer, str) and self.answer not in self.choices:
            raise ValueError(f"answer: {self.answer!r} is none of the choices")
        if isinstance(self.answer, int) and not 0 <= self.answer < len(self.choices):
            last = len(self.choices) - 1
            raise ValueError(f"answer: {self.answer} is no choice; their numbers are 0 to {last}")
        return self

    @property
    def right(self) -> int:
        """Number of the right choice; 0 of a target, which is the only one."""
        if self.choices is None:
            return 0
        if isinstance(self.answer, str):
            return self.choices.index(self.answer)
        return int(self.answer or 0)

    @property
    def asked(self) -> str:
        """What stands before a choice or the target."""
        question = f"Question: {self.question}\nAnswer:" if self.question is not None else None
        return "\n".join(part for part in (self.context, question) if part is not None)

    @property
    def continuations(self) -> list[str]:
        """Each choice, or the target, as it goes on after :attr:`asked`: one space between them,
        where there is none already and neither a bracket nor a mark stands there."""
        texts = [self.target or ""] if self.choices is None else self.choices
        joined = self.asked[-1].isspace() or self.asked[-1] in OPENING
        return [
            text if joined or text[0].isspace() or text[0] in CLOSING else f" {text}"
            for text in texts
        ]


def read_task(section: Task) -> list[TaskRow]:
    """The rows of a file of the pilot. Raises ConfigError with file and line."""
    return read_asked(Path(section.file), TaskRow, section.most)
