"""The plan: written with the run's folder, shown with its digest, and never after the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.files import digest_json
from workbench.records.plan import PLAN, read_plan, write_plan

VALUES = {
    "seed": 1,
    "report": {"gates": [{"metric": "speedup", "at_least": 1.5}]},
    **{name: {"some": "setting"} for name in ("profile_load", "data", "readiness")},
    **{name: {"some": "setting"} for name in ("measure_ab", "hybrid_plan", "deploy_rollback")},
}


def test_a_plan_has_the_digest_of_what_it_says(tmp_path: Path) -> None:
    write_plan(tmp_path, VALUES)
    plan = read_plan(tmp_path)
    assert plan is not None and plan.is_whole
    assert plan.gates == VALUES["report"]["gates"]
    fields = json.loads((tmp_path / PLAN).read_text())
    content = {k: v for k, v in fields.items() if k not in ("written", "sha256")}
    assert plan.sha256 == digest_json(content, 64) and len(plan.sha256) == 64


def test_a_gate_moved_afterwards_shows(tmp_path: Path) -> None:
    write_plan(tmp_path, VALUES)
    path = tmp_path / PLAN
    path.write_text(path.read_text().replace("1.5", "1.1"))
    assert not read_plan(tmp_path).is_whole


def test_without_a_plan_there_is_none_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    (tmp_path / PLAN).write_text("{")
    with pytest.raises(ConfigError, match=r"plan.json is damaged"):
        read_plan(tmp_path)
