"""Errors that a user can act on: what was got, what is allowed, what to do next.

Every failure that is not a bug is one of these. The command line prints the message
without a traceback and leaves with the class's exit code.
"""

from __future__ import annotations

import textwrap

LONGEST_REASON = 300
"""Characters of what a library said."""


class WorkbenchError(Exception):
    """A failure with a cure. ``got``: the fact; ``allowed``: the rule; ``next_step``: the cure.

    >>> from workbench.api import WorkbenchError, read_trace
    >>> try:
    ...     read_trace("absent.csv")
    ... except WorkbenchError as error:
    ...     print(error.got, error.exit_code)
    absent.csv: cannot be read: No such file or directory 2
    """

    exit_code = 3

    def __init__(self, got: str, *, allowed: str = "", next_step: str = "") -> None:
        self.got, self.allowed, self.next_step = got, allowed, next_step
        super().__init__(got, allowed, next_step)

    def __reduce__(self) -> tuple[object, ...]:
        """So that an error crosses a process: ``Exception`` alone would lose the keywords."""
        return _made_again, (type(self), self.got, self.allowed, self.next_step)

    def __str__(self) -> str:
        lines = [self.got]
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.next_step:
            lines.append(f"  next:    {self.next_step}")
        return "\n".join(lines)


def _made_again(
    kind: type[WorkbenchError], got: str, allowed: str, next_step: str
) -> WorkbenchError:
    return kind(got, allowed=allowed, next_step=next_step)


class ConfigError(WorkbenchError):
    """The pilot file, an override or an input file is wrong; nothing was started.

    >>> from workbench.api import ConfigError
    >>> print(ConfigError("steps is 0", allowed="1 or more", next_step="raise it"))
    steps is 0
      allowed: 1 or more
      next:    raise it
    """

    exit_code = 2


class StageError(WorkbenchError):
    """A stage could not finish; what earlier stages finished is kept."""

    exit_code = 3


class CheckError(WorkbenchError):
    """A model's files, or a core, are not what they say they are."""

    exit_code = 3


class GateError(WorkbenchError):
    """Everything ran, and a gate that must hold does not."""

    exit_code = 4


def reason_of(error: BaseException) -> str:
    """What a library said, on one line; with the error's type where that alone says nothing.

    The first line alone may be a heading, a message may be empty, and that of a KeyError is
    the bare key.
    """
    text = shortened(str(error))
    if text and not isinstance(error, LookupError):
        return text
    return f"{type(error).__name__} {text}".rstrip()


def shortened(text: str) -> str:
    """On one line, ``LONGEST_REASON`` characters at most, also where they are a single word."""
    line = textwrap.shorten(text, LONGEST_REASON, placeholder=" ...")
    return line if line != "..." else f"{text.split()[0][: LONGEST_REASON - 4]} ..."
