"""A number stands before its noun's form: 1 request. Wherever the code writes a sentence."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from workbench.paths import PROJECT
from workbench.wording.counts import number_of
from workbench.wording.reasons import reason_words
from workbench.wording.text import Texts

VERBS = {
    "answers", "asks", "begins", "belongs", "brings", "checks", "chooses", "comes", "counts",
    "covers", "decides", "divides", "ends", "exists", "fails", "fits", "gives", "goes", "has",
    "holds", "is", "keeps", "lacks", "leaves", "lies", "loses", "makes", "names", "needs",
    "overlaps", "plays", "prints", "raises", "reaches", "reads", "refuses", "reports", "returns",
    "says", "shows", "stands", "starts", "stretches", "swallows", "takes", "tells", "trains",
    "tries", "wants", "was",
}  # fmt: skip
NO_NOUNS = {
    "across", "always", "as", "bits", "does", "else", "its", "less", "minus", "ms", "nats",
    "others", "plus", "s", "series", "this", "times", "unless", "us", "whose", "yes",
}  # fmt: skip
"""Words with an s at the end that stand behind a value, and units that have no other form."""
ADJECTIVES = r"(?:(?:output|prompt|held-out|own|whole|ternary|training|independent|\w+ing|\w+ed) )*"
NOUN = re.compile(rf" {ADJECTIVES}([a-z]*[a-rt-z]s)\b(?!/)")


def fixed_plurals(path: Path) -> list[str]:
    """A value of an f-string and a plural behind it, with the line. A constant is many."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if not (isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant)):
                continue
            noun = NOUN.match(str(text.value))
            what = ast.unparse(value.value)
            if noun and noun[1] not in VERBS | NO_NOUNS and not constant_or_text(what):
                found.append(f"{path.name}:{value.lineno}: {{{what}}}{text.value!r}")
    return found


def constant_or_text(what: str) -> bool:
    return bool(re.fullmatch(r"[\w.]*\b[A-Z_0-9]+( // \d+)?|number_of\(.*", what, re.DOTALL))


MODULES = sorted((PROJECT / "workbench").rglob("*.py"))
NO_COUNTS = {
    "gguf_reader.py": "bytes of a file; the module stands before the words",
    "checkpoint.py": "a number or more: a text",
    "readers.py": "the ending of a file's name",
    "size.py": "several numbers",
}
"""Module -> what stands there before a plural and is no count."""


def test_no_number_stands_before_a_fixed_plural_in_the_code() -> None:
    wrong = [each for path in MODULES for each in fixed_plurals(path)]
    left = [each for each in wrong if each.split(":")[0] not in NO_COUNTS]
    assert not left, "number_of(n, 'request') of workbench/wording/counts.py:\n" + "\n".join(left)


def test_a_fixed_plural_is_found(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(
        'said = f"{len(rows)} held-out documents, {count:,} of them; {MOST} runs; {name} holds "\n'
        "said += f\"{rate:.3g} requests/s, {number_of(n, 'run')} and {done} trained curves\"\n"
    )
    assert [each.split(": ", 1)[1] for each in fixed_plurals(code)] == [
        "{len(rows)}' held-out documents, '", "{done}' trained curves'"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (0, "request", "0 requests"),
        (1, "own prompt", "1 own prompt"),
        (-1, "step", "-1 step"),
        (1234, "query", "1,234 queries"),
        (2, "day", "2 days"),
        (2, "ternary matrix", "2 ternary matrices"),
        (3, "search", "3 searches"),
        (3, "process", "3 processes"),
    ],
)
def test_a_noun_has_the_form_of_its_number(count: int, noun: str, said: str) -> None:
    assert number_of(count, noun, form=",") == said


def test_the_number_as_it_is_shown_decides() -> None:
    assert number_of(1.2, "request", form=".0f") == "1 request"
    assert number_of(1.2, "request", form=".2g") == "1.2 requests"
    assert number_of(1, "line stands", "lines stand") == "1 line stands"
    assert number_of(2, "line stands", "lines stand") == "2 lines stand"


def test_a_reason_with_one_of_a_thing_is_told_in_words() -> None:
    few = f"no interval: {number_of(1, 'block')}, an interval needs 6"
    assert reason_words(few, Texts()) == "too few for an interval: 1, 6 are needed"
    many = (
        f"no interval: {number_of(1200, 'request', form=',')} are worth "
        f"{number_of(1, 'independent one')}, "
    )
    assert "1,200 count as 1 independent" in reason_words(f"{many}p99 needs 368", Texts())
