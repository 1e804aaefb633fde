"""What a speculative engine counts: verifications, what they wrote, and what each draft guessed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DraftCounts:
    """Of one draft. proposals: of texts, one for each text in a step that it guessed for. guessed,
    accepted: tokens."""

    proposals: int = 0
    guessed: int = 0
    accepted: int = 0


@dataclass
class SpeculationCounts:
    """Since the engine was made. verifications: of texts, one for each text in a step; written:
    tokens that came out, the model's own included; drafts: by their names."""

    verifications: int = 0
    written: int = 0
    drafts: dict[str, DraftCounts] = field(default_factory=dict)

    @property
    def guessed(self) -> int:
        """Tokens, of all drafts."""
        return sum(draft.guessed for draft in self.drafts.values())

    @property
    def accepted(self) -> int:
        """Of those guessed."""
        return sum(draft.accepted for draft in self.drafts.values())

    @classmethod
    def of_plain(cls, fields: dict[str, Any]) -> SpeculationCounts:
        """From what ``dataclasses.asdict`` gave."""
        drafts = {name: DraftCounts(**counts) for name, counts in fields["drafts"].items()}
        return cls(**fields | {"drafts": drafts})
