"""``workbench meter``: what is listed, watched, recorded and read of a file."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import ConfigError
from workbench.measure.meters.recording import read_recording

PILOT = """
extends: workbench:smoke
name: metered
question: Does the log answer?
measure_ab: {meters: {sources: [csv], csv: power.csv}}
"""


@pytest.fixture
def pilot(tmp_path: Path) -> Path:
    rows = [f"{time.time() - 3 + n / 10:.2f},feed-a,{400 + n}\n" for n in range(30)]
    (tmp_path / "power.csv").write_text("timestamp,source,watts\n" + "".join(rows))
    (tmp_path / "pilot.yaml").write_text(PILOT)
    return tmp_path / "pilot.yaml"


def workbench(*words: object):
    result = CliRunner().invoke(app, ["meter", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_list_shows_every_channel_and_each_reason(pilot):
    lines = workbench("list", "--pilot", pilot, "--json").output.splitlines()
    (feed,) = [json.loads(line) for line in lines]
    assert feed == {
        "reader": "csv", "place": "feed-a", "quantity": "power", "unit": "W", "scope": "node",
        "contains": "", "period": "?", "averaging": "?", "lag": "?", "resolution": "?",
        "kind": "measured",
    }  # fmt: skip
    table = workbench("list", "--pilot", pilot).output
    assert "feed-a" in table and "averaging" in table
    assert "csv: no power log is given" in workbench("list").output


def test_watch_shows_value_rate_and_age(pilot):
    said = workbench("watch", "--pilot", pilot, "--for", "0.2s", "--every", "0.1").output
    assert "429 W" in said and "10/s" in said


def test_record_leaves_a_parquet_file(pilot, tmp_path):
    out = tmp_path / "power.parquet"
    result = workbench("record", "--out", out, "--pilot", pilot, "--for", "0.3s", "--every", "0.1")
    assert result.stdout.splitlines()[-1].endswith("power.parquet")
    (batch,) = read_recording(out)
    assert batch.num_rows == 30
    said = workbench("import", out).output
    assert "feed-a: power of scope node (measured), 30 rows, a row every 0.1 s, 414.5 W" in said


@pytest.mark.parametrize("words", ["0", "x", "3 weeks", "-5s"])
def test_a_time_that_is_none_is_refused(pilot, words):
    result = workbench("record", "--out", "p.parquet", "--pilot", pilot, f"--for={words}")
    assert result.exit_code == 2 and "10m" in result.output


def test_columns_are_roles_and_names(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("Zeit;Name;Leistung, gesamt (kW)\n" + "1772438400;a;0,4\n1772438401;a;0,4\n")
    columns = "timestamp=Zeit,source=Name,power=Leistung, gesamt (kW)"
    assert "400 W on average" in workbench("import", path, "--columns", columns).output
    with pytest.raises(ConfigError, match="names no column"):
        workbench("import", path, "--columns", "watts=Leistung")
