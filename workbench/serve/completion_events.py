"""What a stream of completions says, read once it is over: tokens, their times, how it ended."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.serve.exchange import Faulty


@dataclass
class Completion:
    """token_s: when each chunk with a token came. counted, counted_prompt: the server's
    ``usage``; None without.
    ended: ``[DONE]`` came, or a finish reason and then a proper end of the answer."""

    token_s: array[float] = field(default_factory=lambda: array("d"))
    counted: int | None = None
    counted_prompt: int | None = None
    finished: bool = False
    done: bool = False


def read_events(
    into: Completion, body: Sequence[tuple[float, bytes]], a_chunk_a_token: bool
) -> None:
    """Fill in ``into`` from the answer's (when, bytes). A line has come when its last byte has.

    a_chunk_a_token: as this workbench's server does it, where a token may have no text yet.
    Others also send chunks that carry none (a role, a finish reason), and put the last token
    beside the finish reason; there a chunk counts when it has text.

    Raises Faulty for what is not a stream of completions, and for an error within it; ``into``
    then has what came before.
    """
    rest = b""
    for came_s, piece in body:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if not line or line.startswith((b":", b"event:", b"id:", b"retry:")):
                continue
            text = line.removeprefix(b"data:").strip()
            if text == b"[DONE]":
                into.done = True
                continue
            try:
                _read_chunk(into, came_s, json.loads(text), a_chunk_a_token)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                said = f"not an event of a completion: {line[:80]!r} ({type(error).__name__})"
                raise Faulty("broken_sse", said) from error


def _read_chunk(
    into: Completion, came_s: float, chunk: dict[str, Any], a_chunk_a_token: bool
) -> None:
    if "error" in chunk:
        error = chunk["error"]
        raise Faulty("server_error", str(error["message"] if isinstance(error, dict) else error))
    if (usage := chunk.get("usage")) is not None:
        into.counted = int(usage["completion_tokens"])
        if (prompt := usage.get("prompt_tokens")) is not None:
            into.counted_prompt = int(prompt)
    if not chunk["choices"]:
        return
    choice = chunk["choices"][0]
    if choice.get("finish_reason") is not None:
        into.finished = True
        if a_chunk_a_token:
            return
    if a_chunk_a_token or _has_text(choice):
        into.token_s.append(came_s)


def _has_text(choice: dict[str, Any]) -> bool:
    if "text" in choice:
        return bool(choice["text"])
    delta = choice["delta"]
    return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"))
