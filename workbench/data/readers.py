"""Files with text to documents: plain text, JSONL (also .gz, .zst), Parquet, Arrow.

A folder is read in the order of its paths, and one plain-text file in it is one document. A
single plain-text file is cut at blank lines into documents of about ``PIECE_CHARACTERS``,
because one document can be either learned or held out, never both.

Every reader yields lazily, so that ``data.max_bytes`` also bounds what is read from disk.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.data.document import Document
from workbench.errors import ConfigError
from workbench.json_lines import LineError, parsed
from workbench.paths import shown

PIECE_CHARACTERS = 8192
JSONL_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TABLE_SUFFIXES = {".parquet", ".arrow"}
PACKED_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
SEALED_SUFFIXES = {".tar", ".tgz", ".zip", ".7z", ".bz2", ".xz", ".lz4"}
"""Never read: the headers of an archive would be learned as if they were text."""

FIRST_BYTES = {
    b"\x1f\x8b": ("compressed with gzip", "let its name end in .gz, or unpack it"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "let its name end in .zst, or unpack it"),
    b"PK\x03\x04": ("compressed with zip", "unpack it"),
    b"PAR1": ("Parquet", "let its name end in .parquet, or set data.format: parquet"),
    b"ARROW1": ("Arrow", "let its name end in .arrow"),
}
"""What a file that is no text turns out to be, and what to do about it."""


def read_path(path: Path, file_format: str, text_field: str) -> Iterator[Document]:
    """The documents of a file or folder.

    file_format: ``text``, ``jsonl``, ``parquet``, or ``auto``, which goes by the suffixes.
    text_field: the key or column that holds the text; plain text has none.
    Raises ConfigError naming the file (and line) at fault.
    """
    if not path.exists():
        raise ConfigError(f"corpus {shown(path)}: no such file or folder")
    if path.is_file():
        yield from _read_file(path, path.name, file_format, text_field, alone=True)
        return
    files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    if not files:
        raise ConfigError(f"corpus {shown(path)}: the folder holds no files")
    for file in files:
        inner = file.relative_to(path).as_posix()
        yield from _read_file(file, inner, file_format, text_field, alone=False)


def record_text(record: Any, text_field: str, where: str) -> str:
    """The text of one row or JSON object; ConfigError says where it is missing."""
    if not isinstance(record, dict):
        raise ConfigError(
            f"{where}: got {type(record).__name__}",
            allowed="one JSON object a line, with the text under " + repr(text_field),
        )
    if text_field not in record:
        raise missing_field(text_field, list(record), where)
    text = record[text_field]
    if not isinstance(text, str):
        raise ConfigError(
            f"{where}: {text_field!r} holds {type(text).__name__}, not text",
            next_step="set data.text_field to the key that holds the text",
        )
    return text


def missing_field(text_field: str, available: Iterable[str], where: str) -> ConfigError:
    return ConfigError(
        f"{where}: no {text_field!r}",
        allowed="one of " + ", ".join(map(repr, available)),
        next_step="set data.text_field to the one that holds the text",
    )


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts)


def _read_file(
    path: Path, name: str, file_format: str, text_field: str, *, alone: bool
) -> Iterator[Document]:
    suffix = _inner_suffix(path)
    if suffix in SEALED_SUFFIXES:
        raise ConfigError(
            f"corpus {shown(path)}: {suffix} files are not read",
            allowed="text and JSONL, also as .gz or .zst; Parquet; Arrow",
            next_step="unpack it, or leave it out of the folder",
        )
    name = _spellable(name)
    kind = file_format if file_format != "auto" else _kind(suffix)
    if kind == "jsonl":
        yield from _read_jsonl(path, name, text_field)
    elif kind == "parquet":
        yield from _read_table(path, name, text_field)
    else:
        yield from _read_text(path, name, alone)


def _inner_suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((s for s in reversed(suffixes) if s not in PACKED_SUFFIXES), "")


def _kind(suffix: str) -> str:
    if suffix in JSONL_SUFFIXES:
        return "jsonl"
    return "parquet" if suffix in TABLE_SUFFIXES else "text"


def _spellable(name: str) -> str:
    """A name with a question mark for each lone surrogate, which stands for a byte of a file's
    name that is not UTF-8, or comes from JSON; no record could be written with one."""
    return name.encode("utf-8", "replace").decode()


@contextmanager
def _opened(path: Path) -> Iterator[io.TextIOWrapper]:
    """The file as UTF-8 text, unpacked by its suffix; what is wrong becomes a ConfigError.

    Arrow's streams do the unpacking because they, unlike the codecs' own readers, all tell a
    truncated file from one that ends.
    """
    try:
        with _unpacked(path) as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(path, error.reason) from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


@contextmanager
def _unpacked(path: Path) -> Iterator[pa.NativeFile]:
    # Arrow opens no file whose name is not UTF-8, and knows the suffixes in lower case only.
    packing = PACKED_SUFFIXES.get(path.suffix.lower())
    with path.open("rb") as file, pa.input_stream(file, compression=packing) as stream:
        yield stream


def _not_text(path: Path, reason: str) -> ConfigError:
    with _unpacked(path) as stream:
        start = stream.read(max(map(len, FIRST_BYTES)))
    for first, (what, next_step) in FIRST_BYTES.items():
        if start.startswith(first):
            return ConfigError(
                f"corpus {shown(path)} is {what}, not text as its name says", next_step=next_step
            )
    return ConfigError(
        f"corpus {shown(path)} is not UTF-8 text: {reason}",
        next_step="convert it, e.g. iconv -f LATIN1 -t UTF-8, or leave it out of the folder",
    )


def _damaged(path: Path, error: Exception) -> ConfigError:
    if isinstance(error, OSError) and error.errno:
        return ConfigError(
            f"corpus {shown(path)} cannot be read: {error.strerror}",
            next_step="see to its permissions, or leave it out of the folder",
        )
    return ConfigError(
        f"corpus {shown(path)} is truncated or damaged: {str(error).splitlines()[0]}",
        next_step="fetch, pack or write the file again",
    )


def _read_text(path: Path, name: str, alone: bool) -> Iterator[Document]:
    with _opened(path) as file:
        if not alone:
            yield Document(name, _folder_of(name), file.read())
            return
        for number, piece in enumerate(_pieces(file)):
            yield Document(f"{name}#{number}", name, piece)


def _folder_of(name: str) -> str:
    """A folder's text files are grouped by their first folder, or by suffix at the top."""
    first, _, rest = name.partition("/")
    return first if rest else Path(name).suffix or "text"


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Cut at the first blank line after ``PIECE_CHARACTERS``; without blank lines, at twice
    that length."""
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        blank = not line.strip()
        if (size >= PIECE_CHARACTERS and blank) or size >= 2 * PIECE_CHARACTERS:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def _read_jsonl(path: Path, name: str, text_field: str) -> Iterator[Document]:
    with _opened(path) as file:
        try:
            for number, record in parsed(file):
                text = record_text(record, text_field, f"corpus {shown(path)}, line {number}")
                label = _spellable(str(record.get("id", f"{name}#{number}")))
                yield Document(label, name, text)
        except LineError as error:
            raise ConfigError(
                f"corpus {shown(path)}, {error}",
                allowed="one JSON object a line",
                next_step="the file ends in the middle of a line: fetch it again"
                if error.is_cut
                else "mend the line, or set data.format: text",
            ) from None


def _read_table(path: Path, name: str, text_field: str) -> Iterator[Document]:
    where = f"corpus {shown(path)}"
    number = 0
    try:
        for batch in _batches(path, text_field, where):
            texts = batch.column(text_field).to_pylist()
            ids = batch.column("id").to_pylist() if "id" in batch.schema.names else None
            for index, text in enumerate(texts):
                number += 1
                if not isinstance(text, str):
                    raise ConfigError(
                        f"{where}, row {number}: {text_field!r} holds {type(text).__name__}",
                        next_step="set data.text_field to a column of text without gaps",
                    )
                label = f"{name}#{number}" if ids is None else str(ids[index])
                yield Document(label, name, text)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}, after row {number}: {text_field!r} is not UTF-8 text: {error.reason}",
            next_step="write the file again from text that is UTF-8",
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _batches(path: Path, text_field: str, where: str) -> Iterator[pa.RecordBatch]:
    """Batches with the column of the text and, if there is one, that of the ids."""
    with path.open("rb") as file:
        if path.suffix.lower() != ".arrow":
            with pq.ParquetFile(file) as table:
                columns = _columns(table.schema_arrow.names, text_field, where)
                yield from table.iter_batches(batch_size=1024, columns=columns)
            return
        # Arrow has two formats under one suffix; only the file format begins with its name.
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        with pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file) as reader:
            columns = _columns(reader.schema.names, text_field, where)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                yield batch.select(columns)


def _columns(names: list[str], text_field: str, where: str) -> list[str]:
    """The columns to read; an ``id`` that is there twice names nothing."""
    if text_field not in names:
        raise missing_field(text_field, names, where)
    if names.count(text_field) > 1:
        raise ConfigError(
            f"{where}: {names.count(text_field)} columns are called {text_field!r}",
            allowed="one column with the text",
            next_step="rename the others, or set data.text_field to another column",
        )
    ids = ["id"] if names.count("id") == 1 and text_field != "id" else []
    return [text_field, *ids]
