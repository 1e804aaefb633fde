"""What mkdocs does not do by itself: files outside docs/ become part of the site.

The pages link to pilots, sources and the README as they lie in the repository, so that one link
works there and here. A linked file outside docs/ becomes a page (Markdown as it is, all else as a
block of code), a linked folder a list of its files. A link to what is not there stays as it is,
and ``mkdocs build --strict`` fails on it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.M | re.S)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".h": "cpp", ".cpp": "cpp"}
FIRST = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
"""Pages of the site that lie elsewhere in the repository."""
PAGES: dict[str, str] = {}
"""Path in the repository -> page of the site, of all that lies outside docs/."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add each page that lies elsewhere, and whatever the pages link to."""
    PAGES.clear()
    PAGES.update({source: page for page, source in FIRST.items()})
    waiting = list(PAGES)
    seen = set(waiting)
    waiting += [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    while waiting:
        source = waiting.pop()
        if source in PAGES:
            files.append(_page(config, source))
        if not source.endswith(".md"):
            continue
        for target in _targets(source):
            if target not in seen and _lies_elsewhere(target) and (ROOT / target).exists():
                seen.add(target)
                PAGES[target] = target if target.endswith(".md") else f"files/{target}.md"
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links within the repository into links within the site."""
    here = page.file.src_uri
    source = next((s for s, p in PAGES.items() if p == here), f"docs/{here}")

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        there = PAGES.get(target, target.removeprefix("docs/"))
        if target not in PAGES and not target.startswith("docs/"):
            return match[0]
        return posixpath.relpath(there, posixpath.dirname(here) or ".") + (match[2] or "")

    return _outside_code(markdown, lambda text: LINK.sub(turned, text))


def _outside_code(markdown: str, change) -> str:
    """``change`` for all text but code."""
    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def _targets(source: str) -> list[str]:
    """What a page links to, as paths in the repository."""
    text = CODE.sub("", (ROOT / source).read_text(encoding="utf-8"))
    folder = posixpath.dirname(source)
    return [posixpath.normpath(posixpath.join(folder, match[1])) for match in LINK.finditer(text)]


def _lies_elsewhere(target: str) -> bool:
    inside = target.startswith("docs/") and not (ROOT / target).is_dir()
    return not inside and not target.startswith("..")


def _page(config: MkDocsConfig, source: str) -> File:
    path = ROOT / source
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if each.is_file())
        text = f"# {source}\n\n" + "\n".join(f"- [{n}]({path.name}/{n})" for n in names)
    elif source.endswith(".md"):
        text = path.read_text(encoding="utf-8")
    else:
        language = LANGUAGES.get(path.suffix, "text")
        text = f"# {source}\n\n````{language}\n{path.read_text(encoding='utf-8')}\n````\n"
    return File.generated(config, PAGES[source], content=text)
