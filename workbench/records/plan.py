"""What a run decides by, written down before its first figure.

``plan.json`` lies in the run's folder from the moment that it is made: the gates with their
margins, the settings of every measurement, and the SHA-256 of both. The report shows it, so that
nobody has to believe that a gate was not moved once the figures were known.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.files import digest_json, read_json, write_json

PLAN = "plan.json"
MEASURED_BY = ("profile_load", "data", "readiness", "measure_ab", "hybrid_plan", "deploy_rollback")
RULE = (
    "pass: the whole 95 % interval keeps the rule; fail: it lies beyond the rule; else "
    "inconclusive. An exact figure decides by its value, a count of none keeps at most 0."
)


@dataclass(frozen=True)
class Plan:
    """written: when. sha256: of ``gates``, ``rule`` and ``measurement``. is_whole: whether what
    lies in the file still has that digest."""

    written: str
    sha256: str
    gates: list[dict[str, Any]]
    measurement: dict[str, Any]
    is_whole: bool


def write_plan(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the plan of the resolved pilot ``values`` into a run's new folder."""
    content = {
        "rule": RULE,
        "gates": values["report"]["gates"],
        "measurement": {name: values[name] for name in MEASURED_BY},
        "seed": values["seed"],
    }
    written = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_json(folder / PLAN, {**content, "written": written, "sha256": digest_json(content, 64)})


def read_plan(folder: Path) -> Plan | None:
    """The plan in a run's folder; None for a run made before there were plans.

    Raises ConfigError when the file is damaged.
    """
    if not (folder / PLAN).exists():
        return None
    try:
        fields = read_json(folder / PLAN)
        written, sha256 = fields.pop("written"), fields.pop("sha256")
        whole = digest_json(fields, 64) == sha256
        return Plan(written, sha256, fields["gates"], fields["measurement"], whole)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{folder / PLAN} is damaged: {error}",
            allowed="the plan as it was written when the run began",
            next_step="restore it; without it the report cannot say what was decided beforehand",
        ) from error
