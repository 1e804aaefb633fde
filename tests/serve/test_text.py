"""Incremental text: the pieces make the whole, and nothing half is ever sent."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data.tokenizer import encode
from workbench.serve.text import WINDOW, StopTexts, TextStream


def pieces(tokenizer, tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer.decode)
    return [*(stream.push(token) for token in tokens), stream.flush()]


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text: str) -> None:
    sent = pieces(tokenizer, encode(tokenizer, [text])[0])
    assert "".join(sent) == text


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_tokens_give_the_decoding_of_the_whole(tokenizer, data) -> None:
    """Also tokens that no text has: bytes that are no UTF-8."""
    token = st.integers(1, len(tokenizer) - 1)
    tokens = data.draw(st.lists(token, max_size=WINDOW))
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_a_character_comes_with_its_last_byte(tokenizer) -> None:
    tokens = encode(tokenizer, ["🧪"])[0]
    assert len(tokens) > 1
    assert pieces(tokenizer, tokens) == [""] * (len(tokens) - 1) + ["🧪", ""]


def test_bytes_that_never_become_a_character_do_not_hold_up_the_rest(tokenizer) -> None:
    bad = next(t for t in range(len(tokenizer)) if tokenizer.decode([t]) == "\ufffd")
    letter = encode(tokenizer, ["Q"])[0]
    sent = pieces(tokenizer, [bad] * 200 + letter)
    assert sum(map(bool, sent[:200])) >= 195, "text must flow on"
    assert "".join(sent).endswith("Q")


def test_an_answer_that_ends_within_a_character_says_so(tokenizer) -> None:
    tokens = encode(tokenizer, ["ok 🧪"])[0][:-1]
    assert "".join(pieces(tokenizer, tokens)) == "ok \ufffd"


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 5), max_size=30),
)
def test_stop_texts_cut_where_the_whole_text_would_be_cut(text, stops, cuts) -> None:
    stream, sent, at = StopTexts(stops), "", 0
    for length in [*cuts, len(text)]:
        sent += stream.push(text[at : at + length])
        at += length
    sent += stream.flush()
    # The first stop text that is complete decides; the sent text contains none.
    assert stream.found == any(stop in text for stop in stops)
    assert text.startswith(sent)
    assert not any(stop in sent for stop in stops)
    if not stream.found:
        assert sent == text
    else:
        assert any(text[len(sent) :].startswith(stop) for stop in stops)
