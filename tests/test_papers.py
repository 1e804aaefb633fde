"""CONTRIBUTING.md and CHANGELOG.md say what is true of this tree."""

from __future__ import annotations

import re
from pathlib import Path

import workbench

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_file_that_contributing_names_is_there() -> None:
    named = re.findall(r"`([\w./-]+/[\w./-]*)`", CONTRIBUTING)
    named += re.findall(r"\]\(([\w./-]+)\)", CONTRIBUTING)
    assert len(named) > 30
    assert not [name for name in named if not (ROOT / name).exists()]


def test_contributing_fits_a_screen_and_places_ten_changes() -> None:
    assert len(CONTRIBUTING.splitlines()) <= 60
    rooms = re.findall(r"^\d+\. .* → `([^`]+)`", CONTRIBUTING, re.M)
    assert len(rooms) == 10
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for room in rooms:  # a reader finds it in the captioned tree
        parts = room.rstrip("/").split("/")
        assert re.search(rf"^\s*{parts[1]}[./ ]|^{room.split('/')[0]}/{parts[1]}/", readme, re.M), (
            room
        )


def test_make_targets_that_contributing_names_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([\w-]+)`", CONTRIBUTING)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_version_has_its_entry_and_the_licence_its_file() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(
        rf"^## {re.escape(workbench.__version__)}, \d{{4}}-\d\d-\d\d$", changelog, re.M
    )
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
