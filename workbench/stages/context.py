"""What a stage is given and where it puts what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.errors import StageError
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord


@dataclass(frozen=True)
class StageContext:
    """The single argument of every stage.

    record: the record to fill; the executor saves it when the stage returns.
    upstream: records of the finished stages this one depends on, by stage name.
    """

    pilot: Pilot
    record: StageRecord
    progress: Progress
    upstream: dict[str, StageRecord]

    @property
    def folder(self) -> Path:
        """The stage's own folder. What it leaves here survives a kill and is found again by
        the next attempt with the same key: checkpoints belong here."""
        return self.record.folder

    def need(self, stage: str) -> StageRecord:
        if stage not in self.upstream:
            raise StageError(
                f"{self.record.stage} needs {stage}, which has not finished",
                next_step=f"run: workbench stage {stage} PILOT.yaml",
            )
        return self.upstream[stage]
