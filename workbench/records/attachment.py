"""Figures that were computed after a stage had finished, beside its record and never in it.

A power log may come days after the run. What is computed from it lies in ``attached/`` of the
stage's folder; whoever asks the run for the record gets it with those figures in the place of the
ones they replace, and the record's own file stays as the stage left it. Attached again, the earlier
attachment is moved aside and named.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.errors import StageError
from workbench.files import read_json, write_json
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord

FOLDER, FILE = "attached", "attached.json"
FACT = "attached"


@dataclass
class Attachment:
    """file: its name. digest: of its content. attached: when, local time with offset. declared:
    what a person said of it. found: what was found in it, for a person. replaced: earlier ones,
    newest first. metrics, tables, facts, notes: as of a record, and put into it."""

    file: str
    digest: str
    attached: str
    declared: dict[str, Any]
    found: dict[str, Any]
    metrics: list[Metric]
    tables: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    replaced: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return f"{self.file} (sha256 {self.digest}), attached afterwards on {self.attached}"


def attachment_of(folder: Path) -> Attachment | None:
    """That of a stage's folder. Raises StageError where it cannot be read."""
    path = folder / FOLDER / FILE
    if not path.exists():
        return None
    try:
        fields = read_json(path)
        metrics = [Metric.from_json(one) for one in fields.pop("metrics")]
        return Attachment(metrics=metrics, **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StageError(
            f"{path} cannot be read: {error}",
            next_step=f"remove {path.parent} and attach the log again: workbench meter import",
        ) from error


def with_attachment(record: StageRecord) -> StageRecord:
    """The record with what is attached to it; as it is where nothing is. ``facts["attached"]`` says
    what it came from."""
    attachment = attachment_of(record.folder)
    if attachment is None:
        return record
    newer = {(one.name, _labels(one)): one for one in attachment.metrics}
    metrics = [newer.pop((one.name, _labels(one)), one) for one in record.metrics]
    about = {
        name: getattr(attachment, name)
        for name in ("file", "digest", "attached", "declared", "found", "replaced", "text")
    }
    return replace(
        record,
        metrics=[*metrics, *newer.values()],
        tables=record.tables | attachment.tables,
        facts=record.facts | attachment.facts | {FACT: about},
        notes=list(dict.fromkeys([*record.notes, *attachment.notes])),
    )


def keep(folder: Path, partial: Path, attachment: Attachment) -> None:
    """Put an attachment, whose tables lie in ``partial``, into a stage's folder. An earlier one is
    moved aside and named in ``replaced``."""
    earlier = attachment_of(folder)
    place = folder / FOLDER
    aside = folder / f"{FOLDER}.until-{time.strftime('%Y%m%d-%H%M%S')}"
    if earlier:
        number = 1
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{aside.name.split('~')[0]}~{number}")
        named = {"file": earlier.file, "digest": earlier.digest, "attached": earlier.attached,
                 "kept_in": aside.name}  # fmt: skip
        attachment.replaced = [named, *earlier.replaced]
        attachment.notes.append(
            f"it replaces {earlier.text}, which is kept in {aside.name} of the stage's folder"
        )
    fields = asdict(attachment) | {"metrics": [one.to_json() for one in attachment.metrics]}
    write_json(partial / FILE, fields)
    if earlier:
        place.rename(aside)
    partial.rename(place)


def _labels(metric: Metric) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(metric.labels.items()))
