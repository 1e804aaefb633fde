"""The documentation's site: strict, without a network, searchable from a file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ELSEWHERE = re.compile(
    r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=.?(?:https?:)?//[^>]*"
)


def test_the_site_is_built_strictly(built) -> None:
    site, warnings = built
    assert warnings == []
    assert (site / "index.html").exists()


def test_no_page_loads_anything_from_elsewhere(built) -> None:
    found = {
        page.name: hits
        for page in built[0].rglob("*.html")
        if (hits := ELSEWHERE.findall(page.read_text(encoding="utf-8")))
    }
    assert not found


def test_files_outside_the_folder_are_pages_of_the_site(built) -> None:
    page = (built[0] / "files/workbench/measure/learning_curve.py.html").read_text()
    assert "saturating" in page
    link = re.compile(r'href="?files/workbench/measure/learning_curve\.py\.html')
    assert link.search((built[0] / "studies.html").read_text())


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("absent.md", "absent.md"),
        ("other.md#absent", "absent"),
        ("../absent.yaml", "absent.yaml"),
        ("../CHANGELOG.md#absent", "absent"),
        ("#absent", "absent"),
    ],
)
def test_a_broken_link_fails(builder, tmp_path: Path, link: str, told: str) -> None:
    config = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(config)
    shutil.copytree(ROOT / "docs" / "site", tmp_path / "docs" / "site")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/other.md"):
        (tmp_path / name).write_text("# Here\n")
    (tmp_path / "docs" / "page.md").write_text(f"# Page\n\n[x](other.md#here) [y]({link})\n")
    warnings = builder(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert len(warnings) == 1 and told in warnings[0], warnings


@pytest.mark.browser
def test_the_search_finds_a_page_opened_as_a_file(built, browser) -> None:
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((built[0] / "index.html").as_uri())
    page.locator("[data-md-component=search-query]").press_sequentially("williams squares")
    hit = page.locator(".md-search-result__link").first
    hit.wait_for(state="attached")
    assert "pilots.html" in hit.get_attribute("href")
    assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in asked)
    context.close()


def test_the_architecture_is_drawn_from_the_order_of_imports() -> None:
    """docs/design.md has the order, and tests/test_layout.py holds the code to it."""
    drawn = subprocess.run(
        [sys.executable, str(ROOT / "docs/site/architecture.py")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept = (ROOT / "docs/figures/architecture.svg").read_text(encoding="utf-8")
    assert kept == drawn.stdout, "python docs/site/architecture.py > docs/figures/architecture.svg"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs/gallery").glob("*.png")), ids=str)
def test_pictures_of_the_gallery_are_small_and_dated(picture: Path) -> None:
    assert picture.stat().st_size < 150_000
    page = picture.with_suffix(".md")
    if page.exists():
        assert re.search(r"Run of \d{4}-\d\d-\d\d, .*commit `\w{7}`", page.read_text())


def quoted_errors() -> list[str]:
    """What the page of troubles quotes in the first column of its tables."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    firsts = re.findall(r"^\| (?!what|---)(.*?) \|", text, re.M)
    return [quote for first in firsts for quote in re.findall(r"`([^`]+)`", first)]


def test_troubles_are_quoted_in_the_words_of_the_code() -> None:
    """Each quoted word of an error stands in the code."""
    sources = [*(ROOT / "workbench").rglob("*.py"), *(ROOT / "workbench").rglob("*.json")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in [*sources, ROOT / "Makefile"])
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    quotes = quoted_errors()
    missing = [quote for quote in quotes if quote not in code]
    assert len(quotes) > 20 and not missing
