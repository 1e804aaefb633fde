"""The shape of answers: OpenAI's objects for texts and chats, whole or as SSE chunks.

One chunk a token, also when its text is still empty (half a character, the beginning of a stop
text), so that a client's gaps between chunks are gaps between tokens; then one chunk with the
finish reason and what text was held back. The first chunk therefore marks the first token.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

DONE = "data: [DONE]\n\n"
ARM_HEADER = "x-workbench-arm"
"""Of an answer: which arm gave it, percent-encoded."""


def sse(value: dict[str, Any]) -> str:
    """One server-sent event, always a single line.

    In ASCII, because some clients (httpx) also end a line at U+0085, U+2028 and U+2029.
    """
    return f"data: {json.dumps(value, ensure_ascii=True, allow_nan=False)}\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(frozen=True)
class Form:
    """What all parts of one answer share. arm: which precision gave it.

    counts: the client asked for a last chunk with the token counts; then the others carry a
    null ``usage``, or with ``counts_so_far`` those until then.
    """

    model: str
    arm: str
    chat: bool
    counts: bool = False
    counts_so_far: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def choice(
        self, index: int, text: str, finish_reason: str, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """One of the answers to a body that are not streamed."""
        if self.chat:
            message = {"role": "assistant", "content": text}
            content: dict[str, Any] = {"message": message}
        else:
            content = {"text": text}
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def whole(self, choices: list[dict[str, Any]], counts: dict[str, int]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return self._object("chat.completion", choices, usage=counts)

    def chunk(
        self,
        text: str,
        *,
        first: bool,
        finish_reason: str | None = None,
        index: int = 0,
        logprobs: dict[str, Any] | None = None,
        so_far: dict[str, int] | None = None,
    ) -> dict[str, Any]:
        """One piece of a stream."""
        if self.chat:
            delta = {"role": "assistant", "content": text} if first else {"content": text}
            content: dict[str, Any] = {"delta": delta}
        else:
            content = {"text": text}
        choice = {
            "index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason
        }  # fmt: skip
        more = {"usage": so_far} if self.counts else {}
        return self._object("chat.completion.chunk", [choice], **more)

    def counts_chunk(self, counts: dict[str, int]) -> dict[str, Any]:
        """The last chunk: no choices, the token counts."""
        return self._object("chat.completion.chunk", [], usage=counts)

    def _object(self, chat_object: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": chat_object if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.arm,
            "choices": choices,
            **more,
        }
