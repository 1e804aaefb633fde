"""The bill for the load's energy on the page: a day, a request, a token, an accepted answer."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.records.stage_record import StageRecord
from workbench.report.cost import LOAD_ROWS
from workbench.wording.labels import ARMS
from workbench.wording.numbers import number, raw, with_interval
from workbench.wording.recorded import recorded
from workbench.wording.text import Texts


def load_bill(
    record: StageRecord, requests_per_day: float, texts: Texts
) -> dict[str, Any] | None:  # fmt: skip
    """A row a thing, a cell an arm, and how each arm's energy is known, or why there is none; None
    for a record of before."""
    found = record.table("cost")
    found = found[found["per"].isin(LOAD_ROWS)]
    if found.empty:
        return None
    arms = [arm for arm in ARMS if f"arm={arm}" in set(found["labels"])]
    rows = []
    for per in LOAD_ROWS:
        own = found[(found["per"] == per) & found["value"].notna()].set_index("labels")
        if len(own):
            cells = [
                _bill_cell(own.loc[f"arm={arm}"], texts) if f"arm={arm}" in own.index else None
                for arm in arms
            ]
            rows.append({"of": texts(f"cost.{per}", requests=requests_per_day), "cells": cells})
    hows: dict[str, list[str]] = {}
    for arm in arms:
        own = found[found["labels"] == f"arm={arm}"]
        day = own[own["per"] == "day"].iloc[0]
        covers = texts("cost.parts", covers=day["covers"]) + "; " if day["covers"] else ""
        how = day["reason"] if pd.isna(day["value"]) else day["how"]
        said = covers + recorded(how, texts).text
        hows.setdefault(said, []).append(texts.get(f"arm.{arm}", arm))
    return {
        "arms": [texts.get(f"arm.{arm}", arm) for arm in arms], "rows": rows,
        "hows": [(", ".join(of), said) for said, of in hows.items()],
    }  # fmt: skip


def _bill_cell(row: Any, texts: Texts) -> dict[str, str]:
    lo, hi = (None if pd.isna(row[end]) else row[end] for end in ("lo", "hi"))
    value, interval = with_interval(row["value"], lo, hi, texts.language)
    return {
        "csv": raw(row["value"], row["lo"], row["hi"], row["energy_j"] / 3.6e6),
        "value": value, "interval": interval, "currency": row["currency"], "how": row["how"],
        "kind": row["kind"], "kind_name": texts(f"kind.{row['kind']}"),
        "energy": number(row["energy_j"] / 3.6e6, texts.language),
        "energy_kind": row["energy_kind"], "energy_kind_name": texts(f"kind.{row['energy_kind']}"),
    }  # fmt: skip
