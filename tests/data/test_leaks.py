"""Leaks: every stretch that two texts share is found, whatever lies around it, and no other."""

from __future__ import annotations

import time

import numpy as np
import pytest

from workbench.data import leaks
from workbench.data.conversation import conversation, plain_words
from workbench.data.document import Document
from workbench.data.leaks import STRETCH, document_leaks, find_leaks


def written_out(judged: str, learned: list[str]) -> int:
    """Letters and digits of ``judged`` in a shared stretch, by comparing strings."""
    letters = [c.lower() for c in judged if c.isalnum()]
    texts = ["".join(c.lower() for c in text if c.isalnum()) for text in learned]
    covered = set()
    for i in range(len(letters) - STRETCH + 1):
        if any("".join(letters[i : i + STRETCH]) in text for text in texts):
            covered |= set(range(i, i + STRETCH))
    return len(covered)


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_all_shared_stretches_are_found_and_no_other(monkeypatch, piece: int) -> None:
    """Against plain comparing; in small pieces a document, and a shared place, lies in several."""
    monkeypatch.setattr(leaks, "PIECE", piece)
    draw = np.random.default_rng(3)
    letters = np.array(list("abcABC123 é.中\n"))

    def text(count: int) -> str:
        return "".join(draw.choice(letters, count))

    shared = [text(n) for n in (30, 70, 150, 400)]
    learned = ["".join([text(200), draw.choice(shared), text(90)]) for _ in range(12)]
    judged = [
        "".join([text(80), draw.choice(shared), text(60), draw.choice(shared)]) for _ in "12345"
    ]
    judged += ["", "short", learned[0][40:120]]
    found = find_leaks(judged, [(str(i), text) for i, text in enumerate(learned)])
    assert [leak.leaked for leak in found] == [written_out(text, learned) for text in judged]
    assert found[-1].leaked > STRETCH and found[-1].learned_in == "0"
    for leak in found:
        if leak.leaked:
            assert written_out(leak.passage, [learned[int(leak.learned_in)]]) >= STRETCH


def test_a_shared_stretch_across_the_end_of_a_document_is_none() -> None:
    text = "".join(chr(ord("a") + i * i % 26) for i in range(60))
    assert find_leaks([text], [("a", text[:30]), ("b", text[30:])])[0].leaked == 0
    assert find_leaks([text], [("a", text[:30] + " " + text[30:])])[0].share == 1.0


def test_of_conversations_the_answers_are_looked_for_wherever_they_stand() -> None:
    """A system prompt that all have leaks nothing; an answer quoted elsewhere does."""

    def talk(name: str, asked: str, said: str) -> Document:
        turns = [("system", "You are the assistant of a company. " * 3), ("user", asked),
                 ("assistant", said)]  # fmt: skip
        row = {"m": [{"role": role, "content": content} for role, content in turns]}
        packed = conversation(row, "m", "here")
        return Document(name, "s", plain_words(packed), packed)

    said = "The part you want is in stock in two weeks, and we will write to you once it is here."
    held = [talk("a", "when?", said), talk("b", said, "yes")]
    found = document_leaks(held, [talk("c", f"You said: {said}", "And it is true.")])
    assert [leak.share for leak in found] == [1.0, 0.0]
    assert document_leaks(held, [talk("d", "when?", "soon")])[0].leaked == 0


def test_sixteen_megabytes_take_seconds() -> None:
    draw = np.random.default_rng(1)
    text = bytes(draw.integers(97, 123, 4_000_000, dtype=np.uint8)).decode()
    learned = [(str(i), text[i : i + 4000]) for i in range(0, len(text), 4000)]
    began = time.process_time()
    found = find_leaks([text[i : i + 2000] for i in range(0, 400_000, 4000)], learned)
    assert all(leak.share == 1.0 for leak in found)
    assert time.process_time() - began < 10, "a quarter of it, on a slow machine"
