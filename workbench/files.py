"""Files that are whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READ_WHOLE = 256 * 2**20
ENDS = 2**20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """JSON that any reader accepts: NaN and infinity are refused, not written."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def digest_json(value: Any, length: int = 16) -> str:
    """A digest of a JSON value that does not depend on the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def digest_path(path: Path, length: int = 16) -> str:
    """A digest of a file's content, or of a folder's names and contents.

    Files over 256 MiB count by size, time of change and both ends: a corpus of a terabyte
    must not be read through before every start.
    """
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file != path:
            total.update(os.fsencode(file.relative_to(path)) + b"\0")
        status = file.stat()
        with file.open("rb") as stream:
            if status.st_size <= READ_WHOLE:
                total.update(hashlib.file_digest(stream, "sha256").digest())
                continue
            total.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            total.update(stream.read(ENDS))
            stream.seek(-ENDS, os.SEEK_END)
            total.update(stream.read(ENDS))
    return total.hexdigest()[:length]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    item: Callable[[], Any] | None = getattr(value, "item", None)
    if item is not None:
        return item()
    raise TypeError(f"{type(value).__name__} does not go into a record: {value!r}")
