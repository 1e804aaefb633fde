"""The committed results: complete, and the same in the document as in the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.paths import PROJECT
from workbench.study.run import STUDIES
from workbench.study.tables import markdown

FILES = sorted((PROJECT / "docs" / "results").glob("study-*.jsonl"))


def test_the_table_holds_each_figure_with_its_interval(tmp_path: Path) -> None:
    where = {"commit": "abc", "machine": "cpu", "date": "2026-01-01", "corpus": "python"}
    common = {"unit": "bits/byte", "n": 9, "how": "how", **where}
    rows = [
        {"name": "gap", "arm": "the_one", "value": 0.12345, "lo": 0.1, "hi": 0.2} | common,
        {"name": "time", "arm": "the_one", "value": 1234.5, "lo": None, "hi": None} | common,
        {"name": "gap", "arm": "b", "width": "64", "value": None, "lo": None, "hi": None} | common,
        {"name": "answer", "value": 0.5, "lo": 0.4, "hi": 0.6} | common,
    ]
    path = tmp_path / "study-x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = markdown(path).splitlines()
    assert text[0] == "|  | gap | time |"
    assert text[2] == "| the one | 0.123 (0.100 to 0.200) | 1,234 |"
    assert text[3] == "| b, width 64 | not measured |  |"
    assert "- `answer`: **0.500 (0.400 to 0.600)** bits/byte (how)" in text
    assert "commit abc" in text[-1] and "2026-01-01" in text[-1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_committed_result_is_whole_and_stands_in_the_document(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    study = STUDIES[path.stem.split("-")[1]]
    assert rows[-1]["name"] == study.HEADLINE
    assert all(row["commit"] and row["machine"] and row["date"] for row in rows)
    assert path.stat().st_size < 1_000_000
    document = (PROJECT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert markdown(path).strip() in document, f"python -m workbench.study.tables {path}"
