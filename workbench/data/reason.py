"""What went wrong in a library, in one line: users never see a traceback."""

from __future__ import annotations

import textwrap

LONGEST = 300


def reason_of(error: BaseException) -> str:
    """The whole message on one line; with its type where the message alone says nothing.

    The first line alone may be a heading, a message may be empty, and that of a KeyError is
    the bare key.
    """
    text = textwrap.shorten(str(error), LONGEST, placeholder=" ...")
    if text and not isinstance(error, LookupError):
        return text
    return f"{type(error).__name__} {text}".rstrip()
