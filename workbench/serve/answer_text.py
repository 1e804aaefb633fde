"""One answer, read from its request's tokens: text, log probabilities, how it ended.

With ``echo`` the prompt's tokens are read first, by the same decoding, so that the text is that of
both together and a character that the prompt begins is finished by the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from workbench.engine.scores import ScoredToken
from workbench.serve.logprobs import PlacedToken, chat_logprobs, completion_logprobs
from workbench.serve.routed import RoutedRequest
from workbench.serve.service import Service
from workbench.serve.text import StopTexts, TextStream
from workbench.serve.wire import ApiError, ChatRequest, CommonFields


class AnswerPiece(NamedTuple):
    """What came with one token, or with the prompt. tokens: where logprobs are asked for."""

    text: str
    tokens: tuple[PlacedToken, ...] = ()


class AnswerText:
    """One piece a token, after that of the prompt where it is wanted; then :meth:`last`."""

    def __init__(
        self, service: Service, routed: RoutedRequest, fields: CommonFields, index: int
    ) -> None:
        assert service.tokenizer is not None
        tokenizer = service.tokenizer

        def decode(tokens: Sequence[int]) -> str:
            kept = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            return str(tokenizer.decode(list(tokens), **kept))

        self.index = index
        self._service, self._routed = service, routed
        self._echo, self._chat = getattr(fields, "echo", False), isinstance(fields, ChatRequest)
        self._scored = fields.alternatives is not None
        self._text, self._stops = TextStream(decode), StopTexts(fields.stop_texts)
        self._length = 0
        """Characters so far, those included that wait for what a stop text may become."""
        self.tokens_read = 0
        """Of the output, those that have become pieces."""
        self._pieces = self._read()
        self._first: AnswerPiece | None = None

    async def begin(self) -> None:
        """Wait for the first token. Raises ApiError 500 when the request failed before it."""
        self._first = await anext(self._pieces, None)
        self.check()

    def check(self) -> None:
        """Raises ApiError when the request has failed."""
        routed = self._routed
        if routed.overdue:
            message = str(routed.error)
            raise ApiError(504, message, kind="server_error", code="deadline_exceeded")
        if routed.finish_reason == "error":
            raise ApiError(
                500,
                f"arm {routed.arm}: {routed.error or 'the engine failed'}",
                kind="server_error",
                code="engine_failed",
            )
        if routed.finish_reason == "cancelled":
            raise ApiError(503, "the server is closing", kind="server_error", code="server_closing")

    async def rest(self) -> AnswerPiece:
        """All of it. Raises ApiError when the request failed on the way."""
        pieces = [piece async for piece in self.pieces()]
        self.check()
        pieces.append(self.last())
        return AnswerPiece(
            "".join(piece.text for piece in pieces),
            tuple(token for piece in pieces for token in piece.tokens),
        )

    async def pieces(self) -> AsyncIterator[AnswerPiece]:
        if self._first is not None:
            yield self._first
        async for piece in self._pieces:
            yield piece

    def last(self) -> AnswerPiece:
        """After the last token: text that waited for a further one, and what ended the output."""
        end = getattr(self._routed.submitted, "end_score", None) if self._scored else None
        ended = () if end is None or self._stops.found else (self._placed(end.token, end),)
        text = self._stops.push(self._decoded(self._text.flush())) + self._stops.flush()
        return AnswerPiece(text, ended)

    def logprobs(self, piece: AnswerPiece) -> dict[str, Any] | None:
        """As the client reads them; None where none were asked for."""
        if not self._scored:
            return None
        shape = chat_logprobs if self._chat else completion_logprobs
        return shape(self._service.token_texts, piece.tokens)

    async def _read(self) -> AsyncIterator[AnswerPiece]:
        fewest = self._routed.request.min_tokens
        async for token in self._routed.stream():
            assert isinstance(token, int)
            if self._echo and not self.tokens_read:
                yield self._prompt()
            placed: tuple[PlacedToken, ...] = ()
            if self._scored:
                assert isinstance(token, ScoredToken)
                placed = (self._placed(token, token.score),)
            piece = self._decoded(self._text.push(token))
            self.tokens_read += 1
            # Text before the minimum is out of a stop text's reach, its beginning included.
            text = piece if self.tokens_read < fewest else self._stops.push(piece)
            yield AnswerPiece(text, placed)
            if self._stops.found:
                self._service.router.stop(self._routed)
                return
        if self._echo and not self.tokens_read and self._routed.finish_reason in ("stop", "length"):
            yield self._prompt()

    def _prompt(self) -> AnswerPiece:
        tokens = self._routed.request.prompt_tokens
        scores = [None, *getattr(self._routed.submitted, "prompt_scores", ())]
        if self._scored and len(scores) != len(tokens):
            message = f"the prompt's log probabilities were lost with arm {self._routed.arm}"
            raise ApiError(500, message, kind="server_error", code="engine_failed")
        text, placed = "", []
        for place, token in enumerate(tokens):
            if self._scored:
                placed.append(self._placed(token, scores[place]))
            text += self._decoded(self._text.push(token))
        return AnswerPiece(text, tuple(placed))

    def _placed(self, token: int, score: Any) -> PlacedToken:
        return PlacedToken(int(token), self._length, score)

    def _decoded(self, text: str) -> str:
        self._length += len(text)
        return text

    def cancel(self) -> None:
        """The rest is not wanted; nothing happens when there is none."""
        self._service.router.cancel(self._routed)

    @property
    def arm(self) -> str | None:
        """The one that answers now: another one where the first was lost on the way."""
        return self._routed.arm

    @property
    def finish_reason(self) -> str:
        return "stop" if self._stops.found else self._routed.finish_reason or "stop"

    @property
    def tokens(self) -> int:
        """Of the output."""
        return self._routed.tokens
