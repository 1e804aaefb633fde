"""What a finished stage leaves behind, and how later stages read it.

``stages/<stage>/record.json`` exists only when the stage finished; its ``key`` digests the
stage's configuration and inputs, so a record with another key counts as not done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import StageError
from workbench.files import read_json, replacing, write_json
from workbench.records.metric import Basis, Metric

if TYPE_CHECKING:
    import pandas as pd

RECORD = "record.json"
PUBLISHED = "published.json"
"""Beside a record that was mirrored from a store: where its files are there."""


@dataclass
class StageRecord:
    """A stage's results. ``folder`` holds its tables (Parquet) and artefacts.

    duration_s: of all attempts together; attempts: how many there were.
    metrics: figures (:class:`Metric`).
    tables: name -> Parquet file below ``folder``.
    software: what it was made with (``machine.environment.describe_software``).
    artefacts: name -> file or folder below ``folder`` (a checkpoint, a packed model).
    facts: plain JSON that is neither a figure nor a table (a plan, a list of meters).
    notes: sentences a reader must know: fallbacks taken, limits met.
    """

    stage: str
    folder: Path
    key: str = ""
    started: str = ""
    duration_s: float = 0.0
    attempts: int = 1
    software: dict[str, Any] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    artefacts: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, metric: Metric) -> Metric:
        """Record one figure; the same name and labels twice is a mistake of the stage."""
        if any(m.name == metric.name and m.labels == metric.labels for m in self.metrics):
            raise ValueError(f"metric {metric.name} {metric.labels} was recorded already")
        self.metrics.append(metric)
        return metric

    def measured(
        self,
        name: str,
        value: float,
        unit: str,
        how: str,
        *,
        n: int | None = None,
        lo: float | None = None,
        hi: float | None = None,
        reason: str | None = None,
        basis: Basis = "sample",
        **labels: str,
    ) -> Metric:
        """Record a figure that this run measured; ``reason`` (why it has no interval) and ``basis``
        as of :class:`Metric`."""
        return self.add(
            Metric(
                name,
                value,
                unit,
                how,
                n=n,
                lo=lo,
                hi=hi,
                reason=reason,
                labels=labels,
                basis=basis,
            )
        )

    def missing(self, name: str, unit: str, reason: str, **labels: str) -> Metric:
        """Record that a figure could not be measured, and why."""
        return self.add(Metric.missing(name, unit, reason, **labels))

    def metric(self, name: str, **labels: str) -> Metric | None:
        """The first figure with this name whose labels include ``labels``, or None."""
        return next((m for m in self.metrics if m.matches(name, labels)), None)

    def save_table(self, name: str, frame: pd.DataFrame) -> None:
        with replacing(self.folder / f"{name}.parquet") as partial:
            frame.to_parquet(partial, index=False)
        self.tables[name] = f"{name}.parquet"

    def table(self, name: str) -> pd.DataFrame:
        if name not in self.tables:
            raise KeyError(f"{self.stage} has no table {name!r}; it has {sorted(self.tables)}")
        import pandas as pd  # a second on a busy machine, which a list of runs need not wait for

        return pd.read_parquet(self._there(self.folder / self.tables[name]))

    def artefact(self, name: str) -> Path:
        if name not in self.artefacts:
            raise KeyError(
                f"{self.stage} has no artefact {name!r}; it has {sorted(self.artefacts)}"
            )
        return self._there(self.folder / self.artefacts[name])

    def is_whole(self) -> bool:
        """Whether all that the record names is there."""
        named = (*self.tables.values(), *self.artefacts.values())
        return all((self.folder / name).exists() for name in named)

    def _there(self, path: Path) -> Path:
        if path.exists():
            return path
        if (self.folder / PUBLISHED).exists():
            raise StageError(
                f"{path} is not here: of this run of the store only what was asked for is",
                next_step="workbench fetch RUN brings it whole: tables and models",
            )
        raise StageError(
            f"{path} is gone, a result of {self.stage}",
            next_step=f"run that stage again: workbench stage {self.stage} PILOT.yaml --force",
        )

    def save(self) -> None:
        fields = {k: v for k, v in vars(self).items() if k not in ("folder", "metrics")}
        write_json(self.folder / RECORD, {**fields, "metrics": [m.to_json() for m in self.metrics]})

    @classmethod
    def load(cls, folder: Path) -> StageRecord | None:
        """The record in ``folder``, or None when the stage has not finished there."""
        if not (folder / RECORD).exists():
            return None
        try:
            fields = read_json(folder / RECORD)
            metrics = [Metric.from_json(m) for m in fields.pop("metrics")]
            return cls(folder=folder, metrics=metrics, **fields)
        except (ValueError, TypeError, KeyError) as error:
            raise StageError(
                f"{folder / RECORD} cannot be read: {error}",
                next_step="remove that file, or run the stage again with --force",
            ) from error
