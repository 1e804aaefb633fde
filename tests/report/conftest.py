"""Complete run folders with made-up figures, and a browser without a network."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workbench.records.run import Run


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
