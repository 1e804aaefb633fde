"""From tokens to text, one token at a time, without ever sending half a character.

A token may end within a UTF-8 sequence, and how a token reads may depend on its neighbours, so
the last tokens are decoded again together. A decoder turns an unfinished sequence into exactly
one U+FFFD at the end: everything before that character is final and is sent, that character
waits for the next token. The concatenation of all pieces is therefore the decoding of all
tokens, and bytes that never become a character delay the text by one character, not for ever.

Cost: each token decodes a window that starts at the last token boundary with finished text;
:data:`WINDOW` bounds it, so a long run of invalid bytes costs no more than a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

WINDOW = 64
UNFINISHED = "\ufffd"


class TextStream:
    """decode: token ids -> text, the same function that would decode the whole output."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._context = 0
        """Tokens at the start of the window whose text was sent; they are kept because a
        tokenizer may read the first token of a text differently (SentencePiece's space)."""
        self._sent = ""
        """What was sent of the tokens after the context."""

    def push(self, token: int) -> str:
        """The text that is final with this token; empty while a character is unfinished."""
        self._window.append(token)
        fresh = self._fresh()
        finished = not fresh.endswith(UNFINISHED)
        final = fresh if finished else fresh[: -len(UNFINISHED)]
        piece = final[len(self._sent) :]
        self._sent = final
        if finished and fresh:
            self._window = self._window[self._context :]
            self._context, self._sent = len(self._window), ""
        elif len(self._window) - self._context > WINDOW:
            piece += self.flush()
        return piece

    def flush(self) -> str:
        """What is left when no token follows: an unfinished character as U+FFFD."""
        piece = self._fresh()[len(self._sent) :]
        self._window, self._context, self._sent = [], 0, ""
        return piece

    def _fresh(self) -> str:
        """Text of the tokens after the context, read in that context."""
        before = self._decode(self._window[: self._context])
        return self._decode(self._window)[len(before) :]


class StopTexts:
    """Cuts a stream of text at the first occurrence of any stop text, which is not sent.

    Text that could be the beginning of a stop text is held back until it is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What of the text so far can be sent; after ``found`` nothing more."""
        if self.found:
            return ""
        self._held += piece
        ends = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if ends:
            self.found = True
            return self._release(min(ends))
        return self._release(len(self._held) - self._undecided())

    def flush(self) -> str:
        """The text held back, when the output ended before it became a stop text."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, length: int) -> str:
        sent, self._held = self._held[:length], self._held[length:]
        return sent

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
