"""Blocks of lines as columns: CSV, JSONL, Parquet and text logs, by PyArrow.

No line is touched in Python as long as it is whole. A block with a line that PyArrow refuses is
taken apart: CSV names its bad lines itself; of JSON, sixteen-thousand-byte pieces that hold a bad
line are read by ``json``, line by line.

A quoted value of CSV may hold delimiters and quotes but no line break: with one, a single lost
quote would swallow all lines up to the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from workbench.load.blocks import Block, Digesting, TraceFile, reading
from workbench.load.faults import Faults
from workbench.load.formats import Layout
from workbench.load.vllm_log import VllmLog
from workbench.wording.counts import number_of

PIECE = 16 * 2**10
"""Bytes of JSON that are read line by line where one of them is bad."""
PARQUET_ROWS = 262_144
JSON_TYPES = {
    "number": pa.float64(),
    "text": pa.string(),
    "flag": pa.bool_(),
    "list": pa.list_(pa.int64()),
}


@dataclass
class Rows:
    """columns: field name -> values, all of one length. lines: gives the number of every row's
    line; it costs time, and is asked for bad rows alone."""

    columns: dict[str, pa.Array]
    count: int
    lines: Callable[[], np.ndarray]
    unfinished: bool = False


def rows_of(file: TraceFile, layout: Layout, faults: Faults) -> Iterator[Rows]:
    """All rows of the file; what is no row is counted in ``faults``."""
    if layout.kind == "parquet":
        yield from _parquet_rows(file, layout, faults)
        return
    if layout.kind == "vllm":
        log = VllmLog(file.path, faults)
        for block in file.blocks():
            yield _vllm_rows(log, block)
        log.close()
        return
    parse = {"csv": _csv_rows, "json": _json_rows, "pattern": _pattern_rows}[layout.kind]
    for block in file.blocks():
        if layout.kind == "csv" and block.first_line == 1:
            block = _without_header(block)
        if block.data.strip():
            yield parse(block, layout, faults)


# CSV


def _without_header(block: Block) -> Block:
    """The block after its first line that is not blank."""
    data, line = block.data, block.first_line
    while data:
        first, _, data = data.partition(b"\n")
        line += 1
        if first.strip():
            break
    return Block(data, line, block.unfinished)


def _csv_rows(block: Block, layout: Layout, faults: Faults) -> Rows:
    data, dropped = _without_open_quotes(block, faults)
    refused: list[int] = []
    filled = cache(lambda: _filled_lines(data, block.first_line))

    def refuse(row: Any) -> str:
        refused.append(row.number)
        if row.text.strip():
            faults.lines += 1
            line = int(filled()[row.number - 1])
            found = (
                f"{number_of(row.actual_columns, 'field')}, {row.expected_columns} in the header"
            )
            said = "the last line is cut off" if cut(line) else "another number of fields"
            faults.add(said, 1, line, f"{found}: {row.text}", "as many fields as the header has")
        return "skip"

    last = block.first_line + block.data.count(b"\n")

    def cut(line: int) -> bool:
        return block.unfinished and line >= last

    names = layout.names
    if not data.strip():
        return Rows({name: pa.array([], pa.string()) for name in names}, 0, lambda: np.array([]))
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        read_options=pyarrow.csv.ReadOptions(
            column_names=layout.header, use_threads=False, block_size=len(data) + 1
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=layout.delimiter, invalid_row_handler=refuse
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            include_columns=list(names),
            strings_can_be_null=False,
        ),
    )
    faults.lines += len(table)

    def lines() -> np.ndarray:
        return np.delete(filled(), [number - 1 for number in refused])

    columns = {name: table[name].combine_chunks() for name in names}
    return Rows(columns, len(table), _with_dropped(lines, dropped), block.unfinished)


def _without_open_quotes(block: Block, faults: Faults) -> tuple[bytes, np.ndarray]:
    """The block without lines in which a quote is not closed, and their numbers."""
    if b'"' not in block.data:
        return block.data, np.array([], int)
    data = np.frombuffer(block.data, np.uint8)
    ends = np.flatnonzero(data == ord("\n")) + 1
    if not len(ends) or ends[-1] != len(data):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1]])
    quotes = np.add.reduceat((data == ord('"')).astype(np.int32), starts)
    open_ = np.flatnonzero(quotes % 2)
    if not len(open_):
        return block.data, open_
    first = open_[0]
    text = block.data[starts[first] : ends[first]].decode()
    faults.lines += len(open_)
    faults.add(
        "a quote is not closed",
        len(open_),
        block.first_line + int(first),
        text,
        "quoted values without line breaks",
    )
    kept = np.repeat(quotes % 2 == 0, ends - starts)
    return data[kept].tobytes(), open_


def _with_dropped(lines: Callable[[], np.ndarray], dropped: np.ndarray) -> Callable:
    """Line numbers counted without the dropped lines, as those of the file."""

    def moved() -> np.ndarray:
        numbers = lines()
        if not len(dropped):
            return numbers
        first = numbers[0] if len(numbers) else 1
        offset = numbers - first
        kept = np.delete(np.arange(offset.max(initial=0) + len(dropped) + 2), dropped)
        return first + kept[offset]

    return moved


def _filled_lines(data: bytes, first_line: int) -> np.ndarray:
    """The numbers of the lines that CSV does not skip: those with anything in them."""
    lines = data.split(b"\n")
    filled = [number for number, line in enumerate(lines) if line not in (b"", b"\r")]
    return first_line + np.array(filled, int)


# JSON


def _json_rows(block: Block, layout: Layout, faults: Faults) -> Rows:
    schema = _schema(layout)
    whole = _read_json(block.data, schema)
    if whole is not None:
        columns, count = _flattened(whole, layout), len(whole)
        faults.lines += count
        return Rows(columns, count, lambda: _text_lines(block), block.unfinished)
    parts, numbers = [], []
    line = block.first_line
    for piece in _pieces(block.data):
        lines = piece.split(b"\n")
        table = _read_json(piece, schema)
        if table is not None and len(table) == sum(bool(text.strip()) for text in lines):
            parts.append(_flattened(table, layout))
            numbers.append(line + np.flatnonzero([bool(text.strip()) for text in lines]))
            faults.lines += len(table)
        else:
            last = line + piece.count(b"\n") if block.unfinished else -1
            columns, found = _json_line_by_line(lines, line, last, layout, faults)
            parts.append(columns)
            numbers.append(found)
        line += piece.count(b"\n")
    columns = {
        name: pa.concat_arrays([_as_one_type(part[name], layout, name) for part in parts])
        for name in layout.names
    }
    all_numbers = np.concatenate(numbers)
    return Rows(columns, len(all_numbers), lambda: all_numbers, block.unfinished)


def _schema(layout: Layout) -> pa.Schema:
    """The fields that are read; an object whose fields do not matter keeps one of them."""
    tree: dict[str, Any] = {}
    for name in layout.names:
        kind = layout.types.get(name, "null")
        if kind == "object":
            inner = [each for each, k in layout.types.items()
                     if each.startswith(f"{name}.") and k in ("number", "text")]  # fmt: skip
            kind = layout.types[inner[0]] if inner else "null"
            name = inner[0] if inner else name
        *places, leaf = name.split(".")
        node = tree
        for place in places:
            node = node.setdefault(place, {})
            if not isinstance(node, dict):
                break
        if isinstance(node, dict):
            node.setdefault(leaf, JSON_TYPES.get(kind, pa.null()))
    return pa.schema([pa.field(key, _arrow(value)) for key, value in tree.items()])


def _arrow(node: Any) -> pa.DataType:
    if isinstance(node, dict):
        return pa.struct([pa.field(key, _arrow(value)) for key, value in node.items()])
    return node


def _read_json(data: bytes, schema: pa.Schema) -> pa.Table | None:
    """None where PyArrow refuses a line."""
    try:
        return pyarrow.json.read_json(
            pa.BufferReader(data),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowInvalid:
        return None


def _flattened(table: pa.Table, layout: Layout) -> dict[str, pa.Array]:
    """Field name -> values; an object is there or not (a flag)."""
    columns = {}
    for name in layout.names:
        first, *rest = name.split(".")
        values = table[first].combine_chunks() if table.num_rows else pa.nulls(0)
        for key in rest:
            # StructArray.field ignores that the object itself may be null.
            values = pc.struct_field(values, key) if pa.types.is_struct(values.type) else values
        if pa.types.is_struct(values.type):
            values = pc.is_valid(values)
        columns[name] = values
    return columns


def _pieces(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + PIECE) + 1 or len(data)
        yield data[start:end]
        start = end


def _json_line_by_line(
    lines: list[bytes], first: int, last: int, layout: Layout, faults: Faults
) -> tuple[dict[str, pa.Array], np.ndarray]:
    found: dict[str, list[Any]] = {name: [] for name in layout.names}
    numbers = []
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        faults.lines += 1
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            fault = "the last line is cut off" if number == last else "not JSON"
            text = line[:200].decode("utf-8", "replace")
            faults.add(fault, 1, number, text, "one JSON object a line")
            continue
        numbers.append(number)
        for name, values in found.items():
            values.append(_inside(entry, name))
    columns = {
        name: _json_column(values, layout.types.get(name, "null")) for name, values in found.items()
    }
    return columns, np.array(numbers, int)


def _inside(entry: Any, name: str) -> Any:
    for key in name.split("."):
        entry = entry.get(key) if isinstance(entry, dict) else None
    return entry


def _json_column(values: list[Any], kind: str) -> pa.Array:
    """Numbers and texts as text, so that one column can hold both."""
    if kind == "list":
        whole = [
            value
            if isinstance(value, list) and all(type(v) is int and abs(v) < 2**63 for v in value)
            else None
            for value in values
        ]
        return pa.array(whole, pa.list_(pa.int64()))
    if kind == "object":
        return pa.array([value is not None for value in values], pa.bool_())
    # JSON can spell lone surrogates, which a column of text cannot hold.
    return pa.array(
        [
            None if value is None else str(value).encode("utf-8", "replace").decode()
            for value in values
        ],
        pa.string(),
    )


def _as_one_type(values: pa.Array, layout: Layout, name: str) -> pa.Array:
    kind = layout.types.get(name, "null")
    if kind == "list":
        return values.cast(pa.list_(pa.int64()))
    if kind == "object":
        return values if pa.types.is_boolean(values.type) else pc.is_valid(values)
    return values.cast(pa.string())


# Text


def _pattern_rows(block: Block, layout: Layout, faults: Faults) -> Rows:
    """The lines that the pattern fits; a log holds others too, which are counted apart."""
    lines = text_lines(block.data)
    found = pc.extract_regex(lines, layout.header[0])
    fits = found.is_valid()
    matched = found.filter(fits)
    columns = {name: pc.struct_field(matched, name) for name in layout.names}
    faults.lines += len(matched)
    faults.others += len(lines) - len(matched)

    def numbers() -> np.ndarray:
        return block.first_line + np.flatnonzero(fits.to_numpy(zero_copy_only=False))

    return Rows(columns, len(matched), numbers, block.unfinished)


def _vllm_rows(log: VllmLog, block: Block) -> Rows:
    columns, numbers = log.rows(text_lines(block.data), block.first_line)
    count = len(numbers)
    return Rows(columns, count, lambda: numbers, block.unfinished)


def text_lines(data: bytes) -> pa.Array:
    """The lines as texts, without their line breaks."""
    text = data.decode().removesuffix("\n")
    return pc.utf8_rtrim(
        pc.split_pattern(pa.array([text], pa.large_string()), "\n")[0].values, "\r"
    )


def _text_lines(block: Block) -> np.ndarray:
    """Numbers of the lines that are not blank."""
    filled = [bool(line.strip()) for line in block.data.split(b"\n")]
    return block.first_line + np.flatnonzero(filled)


# Parquet


def _parquet_rows(file: TraceFile, layout: Layout, faults: Faults) -> Iterator[Rows]:
    tops = sorted({name.split(".")[0] for name in layout.names})
    with reading(file.path):
        row = 0
        with pq.ParquetFile(file.path) as table:
            for batch in table.iter_batches(PARQUET_ROWS, columns=tops):
                columns = _flattened(pa.table(batch), layout)
                numbers = row + 1 + np.arange(len(batch))
                row += len(batch)
                faults.lines += len(batch)
                file.report(row / max(1, table.metadata.num_rows))
                yield Rows(columns, len(batch), lambda numbers=numbers: numbers)
        with file.path.open("rb") as raw:
            digesting = Digesting(raw, lambda done: None)
            while digesting.read(2**22):
                pass
        file.sha256 = digesting.hexdigest()
