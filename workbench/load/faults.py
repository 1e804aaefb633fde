"""Lines of a trace that cannot be read: counted by kind, the first of each kind shown.

A log of a million lines has some that were cut off by a crash or written by two processes at
once. They are no reason to refuse it, and no reason to be silent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from workbench.errors import ConfigError
from workbench.paths import shown
from workbench.wording.counts import number_of

FEWEST = 10_000
"""Lines before a trace that is mostly bad is given up."""
SHOWN_CHARACTERS = 80
MOST_KINDS = 5


@dataclass
class FaultTally:
    """How many lines have one fault, the first of them, and what is allowed instead."""

    count: int
    line: int
    text: str
    allowed: str


@dataclass
class Faults:
    """max_bad_share: of the lines, at most. lines: that were seen, blank ones left out.
    Rows are parsed by a thread beside the one that judges them: both add, each its own kinds.
    others: lines that are no requests and need not be. notes: what else is to be said."""

    path: Path
    max_bad_share: float
    lines: int = 0
    others: int = 0
    kinds: dict[str, FaultTally] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(kind.count for kind in list(self.kinds.values()))

    def add(self, fault: str, count: int, line: int, text: str, allowed: str) -> None:
        """``count`` more lines with ``fault``; line, text: the first of them."""
        if fault in self.kinds:
            self.kinds[fault].count += count
        else:
            self.kinds[fault] = FaultTally(count, line, text[:SHOWN_CHARACTERS], allowed)

    def check(self, final: bool = False) -> None:
        """ConfigError when too many lines are bad; before the end only when most of them are."""
        allowed = self.max_bad_share if final else max(self.max_bad_share, 0.5)
        if not self.count or self.count <= allowed * self.lines:
            return
        if not final and self.lines < FEWEST:
            return
        fault, first = self._sorted()[0]
        share = f"{self.count} of {number_of(self.lines, 'line')} cannot be read"
        raise ConfigError(
            f"{shown(self.path)}:{first.line}: {fault}: {first.text!r}; {share}: {self._counts()}",
            allowed=f"{first.allowed}; at most {100 * self.max_bad_share:g} % bad lines "
            "(profile_load.max_bad_share)",
            next_step="correct or remove those lines, see whether profile_load.columns, time_unit "
            "and format fit, or allow more with max_bad_share; nothing was started",
        )

    def note(self) -> str | None:
        """One sentence about the lines that were left out; None when all could be read."""
        if not self.count:
            return None
        examples = "; ".join(
            f"{fault}: {kind.count}, first line {kind.line}: {kind.text!r}"
            for fault, kind in self._sorted()[:MOST_KINDS]
        )
        return (
            f"{self.count} of {number_of(self.lines, 'line')} cannot be read and were left out "
            f"({examples})"
        )

    def _sorted(self) -> list[tuple[str, FaultTally]]:
        return sorted(list(self.kinds.items()), key=lambda item: -item[1].count)

    def _counts(self) -> str:
        return ", ".join(f"{fault} {kind.count}" for fault, kind in self._sorted()[:MOST_KINDS])
