"""Python processes beside this one: started, listened to by their log, and always ended.

What a child prints goes to a log whose end is shown when it fails. However the block is left,
the child is asked to end, and killed where it does not.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

TAIL_LINES = 15


@contextmanager
def child(
    module: str,
    *arguments: str,
    log: Path | None,
    environment: Mapping[str, str] | None = None,
    answers: bool = False,
    own_session: bool = False,
    stop_s: float = 10.0,
) -> Iterator[subprocess.Popen[str]]:
    """``python -m module arguments...``, running while the block does.

    Its standard input is a pipe of this process, for questions, or as a sign: it closes however
    this process ends.

    log: takes what it prints; None shows it. environment: variables beside this process's own.
    answers: its standard output is a pipe of text for this process. own_session: Ctrl-C is for
    this process alone, which then ends the child in order. stop_s: time to end in after SIGTERM,
    before it is killed.
    """
    with log.open("wb") if log else nullcontext() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else output,
            stderr=output,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=own_session,
            text=True,
        )
    with process:  # closes the pipes and waits
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(stop_s)
                except subprocess.TimeoutExpired:
                    process.kill()


def allow_open_files(wanted: int = 65_536) -> None:
    """Let this process hold so many files and connections, as far as it may: the usual limit of
    1,024 is one that a thousand streams reach."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def how_it_ended(code: int) -> str:
    """In words: by which signal, or with which code."""
    if code >= 0:
        return f"ended with code {code}"
    memory = " (often: the memory was full)" if code == -9 else ""
    return f"was killed by signal {-code}{memory}"


def end_of_log(log: Path) -> str:
    """The last lines, each on its own, as they stand below a sentence."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    return "\n    ".join(lines) or "(it printed nothing)"
