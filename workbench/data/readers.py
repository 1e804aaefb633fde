"""Files with text to documents: plain text, JSONL (also .gz, .zst), Parquet, Arrow.

A folder is read in the order of its paths, and one plain-text file in it is one document. A
single plain-text file is cut at blank lines into documents of about ``PIECE_CHARACTERS``,
because one document can be either learned or held out, never both.

Every reader yields lazily, so that ``data.max_bytes`` also bounds what is read from disk.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.data.conversation import as_lines, conversation, plain_words
from workbench.data.document import Document
from workbench.data.patterns import Selection, select
from workbench.errors import ConfigError
from workbench.json_lines import LineError, parsed
from workbench.paths import shown
from workbench.wording.counts import number_of

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


@dataclass(frozen=True)
class Fields:
    """Keys or columns that hold a document: its text or, where a row has none, its conversation.
    plain: a conversation becomes lines of plain text."""

    text: str = "text"
    messages: str = "messages"
    plain: bool = False

    def document(self, row: Any, label: str, source: str, where: str) -> Document:
        """Of one row or JSON object; ConfigError says, behind ``where``, what is wrong with it."""
        if not isinstance(row, dict):
            raise ConfigError(
                f"{where}: got {type(row).__name__}",
                allowed="one JSON object a line, with the text under " + repr(self.text),
            )
        if self.text not in row and self.messages in row:
            packed = conversation(row, self.messages, where)
            if self.plain:
                return Document(label, source, as_lines(packed))
            return Document(label, source, plain_words(packed), packed)
        if self.text not in row:
            raise missing_field(self, list(row), where)
        text = row[self.text]
        if not isinstance(text, str):
            raise ConfigError(
                f"{where}: {self.text!r} holds {type(text).__name__}, not text",
                next_step="set data.text_field to the one that holds text, without gaps",
            )
        return Document(label, source, text)


def read_path(
    path: Path, file_format: str, fields: Fields, selection: Selection | None = None
) -> Iterator[Document]:
    """The documents of a file or folder.

    file_format: ``text``, ``jsonl``, ``parquet``, or ``auto``, which goes by the suffixes.
    fields: of rows; plain text has none. selection: of :func:`select_files`, which is made where
    it is not given.
    Raises ConfigError naming the file (and line) at fault.
    """
    selection = selection or select_files(path)
    if path.is_file():
        yield from _read_file(path, path.name, file_format, fields, alone=True)
        return
    for inner in selection.taken:
        yield from _read_file(path / inner, inner, file_format, fields, alone=False)


def select_files(path: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Selection:
    """The files of a corpus. Raises ConfigError where there is none, and for a pattern that fits
    nothing."""
    if not path.exists():
        raise ConfigError(f"corpus {shown(path)}: no such file or folder")
    if path.is_file():
        refuse_patterns(f"corpus {shown(path)}", include, exclude)
        return Selection([path.name], {})
    files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    if not files:
        raise ConfigError(f"corpus {shown(path)}: the folder holds no files")
    names = [file.relative_to(path).as_posix() for file in files]
    return select(names, include, exclude, f"corpus {shown(path)}")


def refuse_patterns(where: str, include: Sequence[str], exclude: Sequence[str]) -> None:
    """ConfigError for patterns of a corpus that is no folder."""
    if include or exclude:
        raise ConfigError(
            f"{where} is no folder, and data.{'include' if include else 'exclude'} has patterns",
            allowed="patterns of files in a folder",
            next_step="name the folder as corpus, or leave the patterns out",
        )


def missing_field(fields: Fields, available: Iterable[str], where: str) -> ConfigError:
    return ConfigError(
        f"{where}: neither {fields.text!r} nor {fields.messages!r}",
        allowed="one of " + ", ".join(map(repr, available)),
        next_step="set data.text_field to the one that holds the text, or data.messages_field to "
        "the one that holds conversations",
    )


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts)


def _read_file(
    path: Path, name: str, file_format: str, fields: Fields, *, alone: bool
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
        yield from _read_jsonl(path, name, fields)
    elif kind == "parquet":
        yield from _read_table(path, name, fields)
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


def _read_jsonl(path: Path, name: str, fields: Fields) -> Iterator[Document]:
    with _opened(path) as file:
        try:
            for number, record in parsed(file):
                given = record.get("id") if isinstance(record, dict) else None
                label = _spellable(str(f"{name}#{number}" if given is None else given))
                where = f"corpus {shown(path)}, line {number}"
                yield fields.document(record, label, name, where)
        except LineError as error:
            raise ConfigError(
                f"corpus {shown(path)}, {error}",
                allowed="one JSON object a line",
                next_step="the file ends in the middle of a line: fetch it again"
                if error.is_cut
                else "mend the line, or set data.format: text",
            ) from None


def _read_table(path: Path, name: str, fields: Fields) -> Iterator[Document]:
    where = f"corpus {shown(path)}"
    number = 0
    try:
        for batch in _batches(path, fields, where):
            for row in batch.to_pylist():
                number += 1
                label = str(row["id"]) if "id" in row else f"{name}#{number}"
                yield fields.document(row, label, name, f"{where}, row {number}")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}, after row {number}: {fields.text!r} is not UTF-8 text: {error.reason}",
            next_step="write the file again from text that is UTF-8",
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _batches(path: Path, fields: Fields, where: str) -> Iterator[pa.RecordBatch]:
    """Batches with the columns of the document and, if there is one, that of the ids."""
    with path.open("rb") as file:
        if path.suffix.lower() != ".arrow":
            with pq.ParquetFile(file) as table:
                columns = _columns(table.schema_arrow.names, fields, where)
                yield from table.iter_batches(batch_size=1024, columns=columns)
            return
        # Arrow has two formats under one suffix; only the file format begins with its name.
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        with pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file) as reader:
            columns = _columns(reader.schema.names, fields, where)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                yield batch.select(columns)


def _columns(names: list[str], fields: Fields, where: str) -> list[str]:
    """The columns to read; an ``id`` that is there twice names nothing."""
    taken = next((name for name in (fields.text, fields.messages) if name in names), None)
    if taken is None:
        raise missing_field(fields, names, where)
    if names.count(taken) > 1:
        raise ConfigError(
            f"{where}: {number_of(names.count(taken), 'column is', 'columns are')} called "
            f"{taken!r}",
            allowed="one column with the text",
            next_step="rename the others, or set data.text_field to another column",
        )
    more = ("id", "tools") if taken == fields.messages else ("id",)
    return [taken, *(name for name in more if names.count(name) == 1 and name != taken)]
