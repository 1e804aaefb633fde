"""Complete run folders with made-up figures, and a browser without a network."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from workbench.records.run import Run
from workbench.records.stage_record import StageRecord


def load_sample_run():
    spec = importlib.util.spec_from_file_location(
        "sample_run", Path(__file__).with_name("sample_run.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch) -> Callable[..., Run]:
    """Makes a run below a folder of its own; see ``sample_run.make_run`` for its options."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    module = load_sample_run()
    return lambda **options: module.make_run(tmp_path, **options)


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory) -> Iterator[Run]:
    """One complete run for tests that only read."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("shared")
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        yield load_sample_run().make_run(folder, energy=True)


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, headless."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def timed_load_records(
    folder: Path, prefill_ms: dict[str, float], decode_ms: dict, device: str = "cuda"
):
    """prefill_ms: arm -> of a prompt token. decode_ms: (arm, batch) -> of an output token, all
    sequences together. The load's requests have 1,000 prompt and 100 output tokens."""
    rows = [
        {
            "block": block, "order": 0, "arm": arm, "class": f"batch_{batch}", "batch": batch,
            "phase": phase, "seconds": 50 * ms / 1e3, "tokens": 50, "sequences": batch,
        }
        for block in range(8)
        for (arm, batch), decode in decode_ms.items()
        for phase, ms in (("prefill", prefill_ms[arm]), ("decode", decode))
    ]  # fmt: skip
    record = StageRecord("measure_ab", folder / "measure_ab", facts={"device": device})
    record.folder.mkdir(parents=True)
    record.save_table("blocks", pd.DataFrame(rows))
    load = StageRecord("profile_load", folder / "profile_load")
    load.folder.mkdir(parents=True)
    summary = {
        "requests": 10, "tokens": {"prompt": 10 * 1000.0, "output": 10 * 100.0},
        "rate_per_s": 2.0, "source": "trace.csv", "kind": "measured",
    }  # fmt: skip
    (load.folder / "profile.json").write_text(json.dumps(summary))
    load.artefacts["profile"] = "profile.json"
    load.save_table("windows", pd.DataFrame({"start_s": [0.0, 60.0], "rate_per_s": [3.0, 3.0]}))
    return {"measure_ab": record, "profile_load": load}


@pytest.fixture
def timed_load():
    """Makes records of arms timed in batches, and of a load; see ``timed_load_records``."""
    return timed_load_records
