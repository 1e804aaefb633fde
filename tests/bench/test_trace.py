"""The benchmark of trace reading reads what it wrote, in every format."""

import json

import pytest

from workbench.bench.trace import FORMATS, bench_trace
from workbench.errors import ConfigError


def test_every_format_is_written_read_and_removed(tmp_path):
    out = tmp_path / "rows.jsonl"
    work = tmp_path / "work"
    work.mkdir()
    rows = bench_trace(2000, formats=("csv.gz",), folder=work, out=out, say=lambda line: None)
    assert [(row["format"], row["reader"]) for row in rows] == [
        ("csv.gz", "workbench"),
        ("csv.gz", "pyarrow"),
    ]
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert {"format", "rows", "rows_per_s", "peak_rss_gb", "commit"} <= kept[0].keys()
    assert kept[0]["rows"] == 2000
    assert not list(work.iterdir())


def test_an_unknown_format_and_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--only xml"):
        bench_trace(2000, formats=("xml",))
    with pytest.raises(ConfigError, match="nowhere"):
        bench_trace(2000, folder=tmp_path / "nowhere")
    assert "parquet" in FORMATS
