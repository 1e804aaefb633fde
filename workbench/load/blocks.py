"""A trace file as blocks of whole lines, read, unpacked and digested in one pass.

A thread reads ahead, so that on two cores the digest and the decompression run beside the
parsing. Memory holds a few blocks, whatever the size of the file.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa

from workbench.errors import ConfigError
from workbench.paths import shown

Item = TypeVar("Item")
BLOCK = 4 * 2**20
"""Bytes of a block; two are read ahead."""
LONGEST_LINE = 64 * 2**20
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
PARQUET = b"PAR1"


@dataclass(frozen=True)
class Block:
    """Whole lines. first_line: number of the first one, from 1. unfinished: the last line of the
    file has no line break, so it may be cut off."""

    data: bytes
    first_line: int
    unfinished: bool = False


class Digesting:
    """A binary file that digests what is read from it and reports how far it got."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]) -> None:
        self._file, self._progress = file, progress
        self._sha256 = hashlib.sha256()
        self._done = 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._sha256.update(data)
        self._done += len(data)
        self._progress(self._done)
        return data

    def close(self) -> None:
        """The file is closed by whoever opened it."""
        self.closed = True

    def hexdigest(self) -> str:
        """Of the whole file, once it was read to its end."""
        return self._sha256.hexdigest()


class TraceFile:
    """One trace file. sha256 is there once :meth:`blocks` was read to its end."""

    def __init__(self, path: Path, progress: Callable[[int], None] = lambda done: None) -> None:
        self.path, self._progress = path, progress
        self.sha256: str | None = None
        with reading(path):
            self.size_bytes = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(4)
        self.packing = next((name for magic, name in MAGIC.items() if start[:4].startswith(magic)),
                            None)  # fmt: skip
        self.is_parquet = start == PARQUET

    def report(self, share: float) -> None:
        """How far a reader of the file has come that does not go through :meth:`blocks`."""
        self._progress(int(share * self.size_bytes))

    def head(self, size: int = 2**20) -> bytes:
        """The first whole lines, at most ``size`` bytes of them (or one line)."""
        with reading(self.path), self.path.open("rb") as file:
            stream = self._unpacked(file)
            data = stream.read(size)
            while b"\n" not in data and len(data) < LONGEST_LINE and (more := stream.read(size)):
                data += more
            if stream.read(1):
                data = data[: data.rfind(b"\n") + 1] or data
        return _plain_text(self.path, data.removeprefix(b"\xef\xbb\xbf"))

    def blocks(self) -> Iterator[Block]:
        """All lines of the file, in order; ConfigError where it cannot be read to its end."""
        return prefetched(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        with reading(self.path), self.path.open("rb") as file:
            digesting = Digesting(file, self._progress)
            stream = self._unpacked(digesting)
            rest, line, mac = b"", 1, None
            while data := stream.read(BLOCK):
                if line == 1 and not rest:
                    data = data.removeprefix(b"\xef\xbb\xbf")
                if mac is None and (b"\n" in data or b"\r" in data):
                    mac = b"\n" not in data  # a table saved in the old way of the Macintosh
                if mac:
                    data = data.replace(b"\r", b"\n")
                rest += data
                end = rest.rfind(b"\n") + 1
                if not end:
                    if len(rest) > LONGEST_LINE:
                        raise ConfigError(
                            f"{shown(self.path)}:{line}: a line of more than "
                            f"{LONGEST_LINE // 2**20} MiB",
                            allowed="one request a line",
                            next_step="give the log itself, not one document of it",
                        )
                    continue
                block, rest = rest[:end], rest[end:]
                yield Block(_plain_text(self.path, block), line)
                line += block.count(b"\n")
            if rest:
                yield Block(_plain_text(self.path, rest), line, unfinished=True)
            while digesting.read(BLOCK):  # what follows a compressed stream belongs to the file
                pass
            self.sha256 = digesting.hexdigest()

    def _unpacked(self, file: BinaryIO | Digesting) -> BinaryIO | pa.NativeFile | Digesting:
        if self.packing is None:
            return file
        return pa.CompressedInputStream(pa.PythonFile(file, "r"), self.packing)


def prefetched(items: Iterator[Item], ahead: int = 2) -> Iterator[Item]:
    """The same items, produced by a thread that is at most ``ahead`` of them in front."""
    ready: queue.Queue = queue.Queue(ahead)
    stop = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                if not _put(ready, item, stop):
                    return
            _put(ready, None, stop)
        except BaseException as error:
            _put(ready, error, stop)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _put(ready: queue.Queue, item: object, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _plain_text(path: Path, data: bytes) -> bytes:
    """The same lines as UTF-8; what is not is replaced, and then fails where it matters."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(
            f"{shown(path)}: UTF-16 text",
            allowed="UTF-8 text",
            next_step="convert it: iconv -f UTF-16 -t UTF-8",
        )
    try:
        data.decode("utf-8")
        return data
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()


class reading:
    """What the operating system or a broken archive says, as a ConfigError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError | pa.ArrowException):
            return
        if isinstance(error, OSError) and error.errno is not None:
            raise ConfigError(
                f"{shown(self._path)}: cannot be read: {error.strerror}",
                allowed="a readable trace file",
                next_step="correct profile_load.trace",
            ) from None
        raise ConfigError(
            f"{shown(self._path)}: damaged or cut off: {error}",
            allowed="a whole file",
            next_step="copy the whole file again",
        ) from None
