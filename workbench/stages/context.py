"""What a stage is given and where it puts what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from workbench.errors import StageError
from workbench.machine.device import Device, choose_device
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

    @cached_property
    def device(self) -> Device:
        """What computes in this stage, by ``readiness.device``; its record says what and why.
        Raises ConfigError for a GPU that is not there."""
        device = choose_device(self.pilot.readiness.device)
        self.record.facts |= {"device": device.name, "device_text": device.text}
        return device

    def note(self, text: str) -> None:
        """Say what a reader must know, a fallback taken or a limit met: announced now and kept
        in the record, once however often it happens."""
        if text not in self.record.notes:
            self.progress.note(text)
            self.record.notes.append(text)

    def need(self, stage: str) -> StageRecord:
        if stage not in self.upstream:
            raise StageError(
                f"{self.record.stage} needs {stage}, which has not finished",
                next_step=f"run: workbench stage {stage} PILOT.yaml",
            )
        return self.upstream[stage]
