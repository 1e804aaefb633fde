"""A committed result file as a Markdown table, so that a document cannot say other numbers.

``python -m workbench.study.tables docs/results/study-recipe-python.jsonl``. Figures with labels
make a table, one row for each arm, width or seed and one column for each name; figures without
are the study's answers and follow as a list.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from workbench.json_lines import read_rows

NOT_LABELS = {
    "name", "value", "lo", "hi", "unit", "n", "how", "commit", "machine", "date", "corpus",
}  # fmt: skip


def markdown(path: Path) -> str:
    """The table, the answers, and where they come from. Names end with their unit."""
    rows = read_rows(path)
    labelled: dict[str, dict[str, str]] = {}
    answers = []
    for row in rows:
        label = ", ".join(_label(key, row[key]) for key in row if key not in NOT_LABELS)
        if label:
            labelled.setdefault(label, {})[row["name"]] = _cell(row)
        else:
            answers.append(f"- `{row['name']}`: **{_cell(row)}** {row['unit']} ({row['how']})")
    columns = list(dict.fromkeys(name for cells in labelled.values() for name in cells))
    lines = ["| " + " | ".join(["", *(name.replace("_", " ") for name in columns)]) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for label, cells in labelled.items():
        lines.append("| " + " | ".join([label, *(cells.get(c, "") for c in columns)]) + " |")
    last = rows[-1]
    source = (
        f"[`{path.name}`](results/{path.name}): corpus {last['corpus']}, commit {last['commit']}, "
        f"{last['machine']}, {last['date']}."
    )
    return "\n".join([*lines, "", *answers, "", source]) + "\n"


def _label(key: str, value: str) -> str:
    return value.replace("_", " ") if key == "arm" else f"{key} {value}"


def _cell(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return "not measured"
    value = _number(row["value"])
    if row["lo"] is None or row["lo"] == row["hi"]:
        return value
    return f"{value} ({_number(row['lo'])} to {_number(row['hi'])})"


def _number(value: float) -> str:
    """Three figures after the point below ten, whole tenths below a hundred, whole above."""
    size = abs(value)
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(markdown(Path(name)))
