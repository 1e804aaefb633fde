"""Own prompts and tasks that were learned are counted and shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.data.corpus import read_corpus
from workbench.data.own_prompts import OwnPrompt
from workbench.data.own_tasks import TaskRow
from workbench.pilot.sections.data import Data
from workbench.records.stage_record import StageRecord
from workbench.stages.measure_ab_leaks import NAME, record_asked_leaks
from workbench.stages.measure_ab_own import OwnQuestions

KNOWN = "A printer on the third floor of the east building is out of paper since this morning"
NEW = "Which of the lifts in the west building was inspected in the last week of September?"


def context(tmp_path: Path, corpus: Path) -> SimpleNamespace:
    record = StageRecord("measure_ab", tmp_path)
    pilot = SimpleNamespace(data=Data(corpus=str(corpus), holdout_share=0.3), seed=7)
    return SimpleNamespace(pilot=pilot, record=record, note=record.notes.append)


def asked() -> OwnQuestions:
    prompts = [OwnPrompt(id="known", prompt=f"Ticket 7: {KNOWN.upper()}!"), OwnPrompt(prompt=NEW),
               OwnPrompt(prompt="And now?")]  # fmt: skip
    place = len(KNOWN) - 12
    rows = [TaskRow(context=KNOWN[:place], target=KNOWN[place:]), TaskRow(context=NEW, target="no")]
    return OwnQuestions(prompts=prompts, tasks={"cloze": rows})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ten documents; the known sentence stands in one that is learned."""
    rows = [{"id": f"d{i}", "text": f"{i * 7919 % 997} words of no interest"} for i in range(10)]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(corpus=str(path), holdout_share=0.3)
    learned = read_corpus(data, 7).training[0].id
    for row in rows:
        row["text"] += f". {KNOWN}." if row["id"] == learned else ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_that_were_learned_are_counted_and_shown(tmp_path: Path, corpus: Path) -> None:
    stage = context(tmp_path, corpus)
    record_asked_leaks(stage, asked())
    prompts, cloze = (stage.record.metric(NAME, asked=name) for name in ("prompts", "cloze"))
    assert (prompts.value, prompts.n, cloze.value) == (pytest.approx(1 / 3), 3, 0.5)
    assert "1 of 3 are shorter than that and cannot be told" in prompts.how
    table = stage.record.table("asked_leaks").set_index(["asked", "row"])
    assert table.loc[("prompts", "known"), "leaked"] == sum(map(str.isalnum, KNOWN))
    assert table.loc[("prompts", "known"), "passage"] == KNOWN.upper()
    assert table["leaked"].gt(0).sum() == 2 and table.loc["cloze"]["passage"].iloc[0] == KNOWN
    assert any("1 of 3 rows of prompts" in note and "row known, in d" in note
               for note in stage.record.notes)  # fmt: skip


def test_a_text_that_is_not_here_any_more_is_said(tmp_path: Path) -> None:
    stage = context(tmp_path, tmp_path / "gone")
    record_asked_leaks(stage, asked())
    assert "gone: no such file" in stage.record.metric(NAME, asked="cloze").reason


def test_nothing_asked_reads_nothing(tmp_path: Path) -> None:
    stage = context(tmp_path, tmp_path / "gone")
    record_asked_leaks(stage, OwnQuestions())
    assert not stage.record.metrics and not stage.record.tables
