"""Own prompts and tasks as rows of text: the answers side by side, the questions in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.records.stage_record import StageRecord
from workbench.wording.labels import ARMS
from workbench.wording.numbers import number, raw, with_interval
from workbench.wording.text import Texts

SHOWN_CHARACTERS = 280
"""Of an answer; a longer one is folded behind these."""
SAID_BY_LIBRARIES = ("json", "schema")
"""Checks of which a library says in English what it found."""
HEAD_CHARACTERS = 90
"""Of a prompt where it stands on one line."""


def own_view(record: StageRecord | None, texts: Texts) -> dict[str, Any] | None:
    """What the page shows of a record of ``measure_ab``; None where the pilot named neither prompts
    nor tasks."""
    if record is None or not {"prompts", "tasks"}.intersection(record.tables):
        return None
    view: dict[str, Any] = {"prompts": [], "pairs": [], "questions": []}
    if "prompts" in record.tables:
        rows, reference = record.table("prompts"), record.facts["prompts_reference"]
        names = list(dict.fromkeys(rows["prompt"]))
        checked = int(rows.loc[rows["arm"] == reference, "accepted"].notna().sum())
        view |= {
            "count": len(names), "checked": checked, "reference": texts.label("arm", reference),
            "prompts": [prompt_view(rows, name, reference, texts) for name in names],
        }  # fmt: skip
    if "tasks" in record.tables:
        view["pairs"] = _pairs(record.table("task_pairs"), texts)
        view["questions"] = _questions(record.table("tasks"), texts)
    return view


def prompt_view(
    rows: pd.DataFrame, name: str, reference: str, texts: Texts, arms: Sequence[str] | None = None
) -> dict[str, Any]:
    """One prompt and what each of ``arms`` (all without any) answered.

    rows: table ``prompts``.
    """
    own = rows[rows["prompt"] == name]
    text = own["text"].iloc[0]
    flat = " ".join(text.split())
    shown = [arm for arm in in_order(own["arm"]) if not arms or arm in arms]
    of_arm = own.set_index("arm")
    return {
        "name": name,
        "text": text,
        "head": flat if len(flat) <= HEAD_CHARACTERS else f"{flat[:HEAD_CHARACTERS]}…",
        "kept": int(own["accepted"].eq(True).sum()) if own["accepted"].notna().any() else None,
        "of": len(own),
        "answers": [_answer(of_arm.loc[arm], arm, reference, texts) for arm in shown],
    }


def in_order(arms: Sequence[str]) -> list[str]:
    """Each once, as a reader meets them."""
    found = dict.fromkeys(arms)
    return sorted(found, key=lambda arm: ARMS.index(arm) if arm in ARMS else len(ARMS))


def _answer(row: Any, arm: str, reference: str, texts: Texts) -> dict[str, Any]:
    answer = row["answer"]
    long = len(answer) > SHOWN_CHARACTERS
    ended = "own.cut" if row["ended"] == "length" else "own.length"
    checked = row["accepted"] is not None and not pd.isna(row["accepted"])
    broken = row["broken"] if checked and not row["accepted"] else None
    return {
        "arm": texts.label("arm", arm),
        "reference": arm == reference,
        "length": texts(ended, count=int(row["tokens"])),
        "start": f"{answer[:SHOWN_CHARACTERS]}…" if long else answer,
        "whole": answer if long else "",
        "accepted": bool(row["accepted"]) if checked else None,
        "broken": texts(f"own.broken.{broken}", wanted=row["wanted"]) if broken else "",
        "detail": row["wanted"] if broken in SAID_BY_LIBRARIES else "",
    }


def _pairs(pairs: pd.DataFrame, texts: Texts) -> list[dict[str, Any]]:
    rows = []
    for row in pairs.to_dict("records"):
        value, interval = with_interval(row["difference"], row["lo"], row["hi"], texts.language)
        counts = {name: row[name] for name in ("n", "both", "gained", "lost", "neither")}
        rows.append(
            {"task": row["task"], "arm": texts.label("arm", row["arm"]), **counts,
             "difference": value, "interval": interval,
             "csv": raw(row["difference"], row["lo"], row["hi"]), "p_csv": raw(row["p"]),
             "p": number(row["p"], texts.language)}
        )  # fmt: skip
    return rows


def _questions(tasks: pd.DataFrame, texts: Texts) -> list[dict[str, Any]]:
    """Of each task: its arms, and a row a question with what each chose."""
    found = []
    for task, own in tasks.groupby("task", sort=False):
        arms = in_order(own["arm"])
        rows = [
            {
                "name": name, "asked": of["asked"].iloc[0], "answer": of["answer"].iloc[0],
                "cells": [_cell(of.set_index("arm").loc[arm]) for arm in arms],
            }
            for name, of in own.groupby("row", sort=False)
        ]  # fmt: skip
        found.append(
            {"task": task, "arms": [texts.label("arm", arm) for arm in arms], "rows": rows}
        )
    return found


def _cell(row: Any) -> dict[str, Any]:
    """chosen: the wrong choice; of a right one, and of cloze, the mark says enough."""
    right = bool(row["correct"])
    return {"right": right, "chosen": "" if right or pd.isna(row["chosen"]) else row["chosen"]}
