"""What all sections share: unknown keys and wrong types are errors, values never change."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A mapping in the pilot file. Strict: ``"12"`` and ``.inf`` are not numbers, ``1`` is not a
    boolean."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class InputPath:
    """Marks a text field that names something to read.

    The value is a path (relative to the pilot file that says it; to the working folder for
    ``--set``), one of ``words``, or, where ``hub`` is allowed, ``hf:owner/name``. A ``live``
    file grows while the pilot runs (a power log), so its content does not identify the run.
    """

    def __init__(self, *words: str, hub: bool = False, live: bool = False) -> None:
        self.words, self.hub, self.live = words, hub, live


def input_path(*words: str, hub: bool = False, live: bool = False, **field: Any) -> Any:
    """The annotation of a path field; see :class:`InputPath`."""
    return Annotated[str, InputPath(*words, hub=hub, live=live), Field(min_length=1, **field)]


Language = Literal["en", "ru"]
Words = str | dict[Language, Annotated[str, Field(min_length=1)]]
"""A text of the pilot itself: as it is, or in each language that it is given in."""


def said_in(words: Words, language: str) -> str:
    """The text in ``language``; where it is not given in that, the one there is."""
    if isinstance(words, str):
        return words
    given = {str(each): text for each, text in words.items()}
    return given.get(language) or next(iter(given.values()), "")


def language_of(text: str) -> Language:
    """Of a text that does not say it: Russian where it has Cyrillic letters."""
    return "ru" if any("\u0400" <= letter <= "\u04ff" for letter in text) else "en"


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
MOST_SLOTS = 4096
"""Of an arm: a step decodes them all, and each has a cache."""
MOST_WAITING = 1_000_000
MOST_BATCH_WAIT_MS = 10_000.0


def is_base_url(text: str) -> bool:
    """Whether it is http or https with a host, and has neither user nor query."""
    try:
        parts = urlsplit(text)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and not (parts.query or parts.fragment or parts.username or parts.password)
