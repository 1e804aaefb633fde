"""The site, built once as ``make docs`` does."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build_site(config_file: Path, site: Path) -> list[str]:
    """Build, and what mkdocs warned of: strictly, each of these fails."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    said: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    heard, logger = Heard(logging.WARNING), logging.getLogger("mkdocs")
    logger.addHandler(heard)
    try:
        build(load_config(str(config_file), site_dir=str(site)))
    finally:
        logger.removeHandler(heard)
    return said


@pytest.fixture(scope="session")
def builder():
    """A configuration and a folder -> what was warned of while the site was built there."""
    return build_site


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> tuple[Path, list[str]]:
    """The site's folder, and what was warned of."""
    site = tmp_path_factory.mktemp("site")
    return site, build_site(ROOT / "mkdocs.yml", site)


_spec = importlib.util.spec_from_file_location(
    "report_conftest", Path(__file__).parents[1] / "report" / "conftest.py"
)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
browser = _module.browser
