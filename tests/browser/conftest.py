"""A finished smoke run, a JupyterLab beside it and a browser; pictures lie in build/browser."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from workbench.figures.page import stage_figures
from workbench.paths import PROJECT, runs_root
from workbench.records.run import Run, runs_in
from workbench.report.html import write_html
from workbench.roadmap import STAGES

PICTURES = PROJECT / "build" / "browser"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"browser_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lab = load(Path(__file__).with_name("lab.py"))
browser = load(Path(__file__).parents[1] / "report" / "conftest.py").browser


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory) -> Path:
    """A runs folder with two copies of the newest finished smoke run, so that nothing of the
    tests lies in the first one."""
    found = [run for run in runs_in(runs_root() / "smoke") if len(run.records()) == len(STAGES)]
    if not found:
        pytest.fail("no finished smoke run: make browser makes one first")
    folder = tmp_path_factory.mktemp("lab") / "runs"
    for suffix in ("", "-again"):
        shutil.copytree(found[-1].folder, folder / "smoke" / f"{found[-1].folder.name}{suffix}")
    return folder


@pytest.fixture(scope="session")
def smoke_run(finished_runs: Path) -> Run:
    return runs_in(finished_runs / "smoke")[0]


@pytest.fixture(scope="session")
def report_at(smoke_run: Run, tmp_path_factory) -> Callable[[str], str]:
    """Language -> the address of the run's report in it, written once."""
    folder = tmp_path_factory.mktemp("reports")

    @cache
    def written(language: str) -> str:
        page = write_html(smoke_run.folder, stage_figures, language)
        return shutil.copy(page, folder / f"report-{language}.html").as_uri()

    return written


@pytest.fixture(scope="session")
def notebooks(finished_runs: Path) -> Path:
    return finished_runs.parent / "notebooks"


@pytest.fixture(scope="session")
def server(finished_runs: Path, notebooks: Path) -> Iterator[str]:
    notebooks.mkdir(exist_ok=True)
    with lab.lab_server(notebooks, finished_runs) as address:
        yield address


@pytest.fixture(scope="module")
def page(browser) -> Iterator:
    """One page for all notebooks: to load the Lab anew for each would take longer than they."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    yield context.new_page()
    context.close()


@pytest.fixture
def opened(page, server) -> Iterator:
    """Opens a notebook; its tab is closed afterwards, whatever came of the test."""
    tabs: list = []

    def open_one(name: str):
        tabs.append(lab.Notebook(page, server, name))
        return tabs[-1]

    yield open_one
    for tab in tabs:
        tab.close()


@pytest.fixture(scope="session")
def pictures() -> Path:
    PICTURES.mkdir(parents=True, exist_ok=True)
    return PICTURES
