"""The drill: a row for each way back, and what it cost."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.theme import FigureTexts, figure, why_not
from workbench.records.stage_record import StageRecord
from workbench.wording.numbers import number

COLUMNS = ("way", "lost", "cut", "first_s", "p99_ms", "back_s", "memory_mb", "growth_mb")
FINE, WRONG = "#FFFFFF", "#F8D7D0"
ROW_PX, HEAD_PX = 30, 150


def drill(record: StageRecord, language: str = "en") -> go.Figure:
    """Requests lost without a token and streams cut, the fallback's first token, the slowest first
    tokens, when the candidate was back and what memory is held, for every way back. A row that
    cost more than it may is red; a way that was not taken says so."""
    say = FigureTexts(language)
    title = say("deploy_rollback.drill.title")
    if "drill" not in record.tables or (rows := record.table("drill")).empty:
        return why_not(say, title, say("fig.no_rows"))
    cells = [[_cell(say, name, row) for row in _rows(rows)] for name in COLUMNS]
    colours = [WRONG if row["holds"] is False else FINE for row in _rows(rows)]
    drawn = figure(say, title, height=HEAD_PX + ROW_PX * len(rows))
    drawn.add_table(
        header={
            "values": [say(f"deploy_rollback.drill.{name}") for name in COLUMNS],
            "align": ["left", *["right"] * (len(COLUMNS) - 1)],
        },
        cells={
            "values": cells,
            "align": ["left", *["right"] * (len(COLUMNS) - 1)],
            "fill": {"color": [colours] * len(COLUMNS)},
            "height": ROW_PX - 4,
        },
        columnwidth=[3, *[1.3] * (len(COLUMNS) - 1)],
    )
    return drawn


def _rows(rows: pd.DataFrame) -> list[dict]:
    found = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return [{**row, "holds": None if row["holds"] is None else bool(row["holds"])} for row in found]


def _cell(say: FigureTexts, name: str, row: dict) -> str:
    if name == "way":
        return say.label("way", str(row["way"]))
    if row["skipped"]:
        return say("kind.not measured") if name == "lost" else ""
    if name in ("lost", "cut"):
        key = "failed_without_token" if name == "lost" else "truncated"
        return f"{int(row[key])} / {int(row['requests'])}"
    key = {
        "first_s": "first_fallback_token_s", "growth_mb": "memory_growth_mb"
    }.get(name, name)  # fmt: skip
    value = row[key]
    return "–" if value is None or math.isnan(value) else number(float(value), say.language)
