"""How fast a trace is read, and in how much memory: ``workbench bench trace``.

Requests of a made-up service (Poisson arrivals, uniform lengths) are written once in every format.
Each is then read by a process of its own, because a process's peak memory never falls: as the
product reads it, from file to finished profile, and by a bare PyArrow pass over the same file that
decodes the same columns and does nothing with them. The two take turns in one run. Rows per CPU
second stand beside rows a second: what a busy machine takes away shows in their ratio.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import zstandard

from workbench.errors import ConfigError
from workbench.load.profile import REQUESTS, LoadProfile
from workbench.load.trace import read_trace
from workbench.pilot.sections.profile_load import ProfileLoad
from workbench.wording.counts import number_of

FORMATS = ("csv", "jsonl", "parquet", "csv.gz", "jsonl.zst")
RATE_PER_S = 50.0
ORIGIN_US = 1_715_299_200_000_000
CHUNK = 1_000_000
SECTION = ProfileLoad()


def bench_trace(
    rows: int = 30_000_000,
    *,
    formats: tuple[str, ...] = FORMATS,
    folder: Path | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Measure and say one line a format and reader: rows a second and peak memory.

    folder: where the files are made, and removed again; None takes the system's temporary one.
    out: a file to which the lines are appended, each with its commit, machine and date.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ConfigError(f"--only {','.join(unknown)}", allowed=", ".join(FORMATS))
    if rows < 1000:
        raise ConfigError(f"--rows {rows}", allowed="1000 or more")
    if folder and not folder.is_dir():
        raise ConfigError(f"--folder {folder}", allowed="a folder that is there")
    from workbench.machine.provenance import provenance  # torch, whose memory is no reader's

    where = {**provenance(), "date": time.strftime("%Y-%m-%d")}
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as made:
        for name in formats:
            path = Path(made) / f"trace.{name}"
            _write(path, rows)
            for reader in ("workbench", "pyarrow"):
                seconds, cpu_s, peak_gb = _apart(reader, path, rows)
                row = {
                    "format": name,
                    "reader": reader,
                    "rows": rows,
                    "rows_per_s": round(rows / seconds),
                    "rows_per_cpu_s": round(rows / cpu_s),
                    "peak_rss_gb": round(peak_gb, 3),
                    "size_gb": round(path.stat().st_size / 1e9, 3),
                }
                found.append(row)
                say(json.dumps(row))
                if out:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({**row, **where}) + "\n")
            path.unlink()
    return found


def _write(path: Path, rows: int) -> None:
    """A trace of ``rows`` requests, packed as the name says."""
    kind = path.name.removeprefix("trace.").split(".")[0]
    if kind == "parquet":
        with pq.ParquetWriter(path, _parquet_schema()) as writer:
            for times, prompt, output in _requests(rows):
                stamps = pa.array(times).cast(pa.timestamp("us", "UTC"))
                writer.write_table(pa.table([stamps, prompt, output], schema=_parquet_schema()))
        return
    with _packed(path) as file:
        if kind == "csv":
            file.write(b"TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for times, prompt, output in _requests(rows):
            columns = [pa.array(prompt).cast(pa.string()), pa.array(output).cast(pa.string())]
            if kind == "csv":
                stamps = pc.strftime(pa.array(times).cast(pa.timestamp("us")), "%Y-%m-%d %H:%M:%S")
                lines = pc.binary_join_element_wise(stamps, *columns, ",")
            else:
                stamps = pa.array((times - ORIGIN_US) // 1000).cast(pa.string())
                lines = pc.binary_join_element_wise(
                    '{"timestamp": ', stamps, ', "input_length": ', columns[0],
                    ', "output_length": ', columns[1], "}", "",
                )  # fmt: skip
            whole = pa.ListArray.from_arrays(pa.array([0, len(lines)], pa.int32()), lines)
            file.write(pc.binary_join(whole, "\n")[0].as_buffer())
            file.write(b"\n")


def _requests(rows: int):
    """(times in us since 1970, prompt tokens, output tokens) in chunks."""
    random = np.random.default_rng(0)
    last = float(ORIGIN_US)
    for start in range(0, rows, CHUNK):
        n = min(CHUNK, rows - start)
        times = last + np.cumsum(random.exponential(1e6 / RATE_PER_S, n))
        last = float(times[-1])
        lengths = [random.integers(1, most, n, dtype=np.int32) for most in (8000, 800)]
        yield times.astype(np.int64), *lengths


def _parquet_schema() -> pa.Schema:
    return pa.schema(
        {
            "timestamp": pa.timestamp("us", "UTC"),
            "prompt_tokens": pa.int32(),
            "completion_tokens": pa.int32(),
        }
    )


def _packed(path: Path):
    if path.suffix == ".gz":
        return pa.CompressedOutputStream(path, "gzip")
    if path.suffix == ".zst":
        return zstandard.open(path, "wb")
    return path.open("wb")


def _apart(reader: str, path: Path, rows: int) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak memory (GB) of one reader in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (reader, path, rows))


def _measured(reader: str, path: Path, rows: int) -> tuple[float, float, float]:
    began, worked = time.perf_counter(), time.process_time()
    seen = _product(path) if reader == "workbench" else _bare(path)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - worked
    if seen != rows:
        raise RuntimeError(f"{reader} saw {seen} of {number_of(rows, 'row')} of {path.name}")
    return seconds, cpu_s, _peak_bytes() / 1e9


def _peak_bytes() -> int:
    """Of this process. Linux hands ``ru_maxrss`` of a parent on to its children; VmHWM is own."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(each for each in status.read_text().splitlines() if each.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _product(path: Path) -> int:
    """From file to profile, as the stage does it."""
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    try:
        trace = read_trace(path, SECTION, folder / REQUESTS)
        return LoadProfile.of(trace, SECTION.window_s, folder).summary["requests"]
    finally:
        shutil.rmtree(folder)


def _bare(path: Path) -> int:
    """The same columns decoded by PyArrow's own streaming readers, and counted."""
    kind, packing = path.name.removeprefix("trace.").split(".")[0], path.suffix
    if kind == "parquet":
        return sum(map(len, pq.ParquetFile(path).iter_batches(262_144)))
    codec = {".gz": "gzip", ".zst": "zstd"}.get(packing)
    with pa.input_stream(str(path), compression=codec) as stream:
        if kind == "csv":
            types = {"TIMESTAMP": pa.timestamp("us"), "ContextTokens": pa.int32(),
                     "GeneratedTokens": pa.int32()}  # fmt: skip
            reader = pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(block_size=4 * 2**20),
                convert_options=pyarrow.csv.ConvertOptions(column_types=types),
            )
        else:
            fields = dict.fromkeys(("timestamp", "input_length", "output_length"), pa.int64())
            reader = pyarrow.json.open_json(
                stream,
                read_options=pyarrow.json.ReadOptions(block_size=4 * 2**20),
                parse_options=pyarrow.json.ParseOptions(explicit_schema=pa.schema(fields)),
            )
        return sum(map(len, reader))
