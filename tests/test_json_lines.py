"""Files of JSON lines: whole rows, cut ones, and those of other people."""

from __future__ import annotations

import pytest

from workbench.json_lines import LineError, as_line, keep_rows, parsed, read_rows


def test_what_a_kill_cut_off_is_left_out_and_then_taken_away(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"step": step, "text": "a\u2028b\x85c"} for step in (1, 2, 3)]
    whole = "".join(map(as_line, rows))
    path.write_text(whole + '{"step": 4, "te')
    assert read_rows(path) == rows
    keep_rows(path)
    assert path.read_text() == whole
    keep_rows(path, lambda row: row["step"] <= 2)
    assert read_rows(path) == rows[:2]
    assert read_rows(tmp_path / "absent.jsonl") == []
    keep_rows(tmp_path / "absent.jsonl")
    assert not (tmp_path / "absent.jsonl").exists()


def test_separators_within_a_text_end_no_line(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "a\u2028b\x85c"}\n'.encode())
    assert read_rows(path) == [{"text": "a\u2028b\x85c"}]


@pytest.mark.parametrize(
    ("text", "number", "is_cut"),
    [("[1]\n\n{]\n", 3, False), ("[1]\n{", 2, True), ("[" * 100_000, 1, True)],
)
def test_a_line_that_is_not_json_has_its_number(text: str, number: int, is_cut: bool) -> None:
    with pytest.raises(LineError) as caught:
        list(parsed(text.splitlines(keepends=True)))
    assert (caught.value.number, caught.value.is_cut) == (number, is_cut)
    assert str(caught.value).startswith(f"line {number}: not JSON")


def test_blank_lines_are_counted_and_skipped() -> None:
    assert list(parsed(["1\n", " \n", "2\n"])) == [(1, 1), (3, 2)]
