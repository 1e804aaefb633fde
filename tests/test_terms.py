"""The terms of docs/design.md name what there is, and a name means one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def classes() -> dict[str, list[str]]:
    """Public top-level classes and type aliases of both packages, with the files that have them."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder in (ROOT / "workbench", ROOT / "kernels" / "ternary_kernels"):
        for path in sorted(folder.rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names = [node.name] if isinstance(node, ast.ClassDef) else []
                if isinstance(node, ast.Assign) and "TypeVar" not in ast.dump(node.value):
                    names = [t.id for t in node.targets if isinstance(t, ast.Name)]
                for name in names:
                    if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", name):
                        found[name].append(str(path.relative_to(ROOT)))
    return found


def test_every_class_among_the_terms_exists() -> None:
    terms = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    terms = terms.split("## Terms")[1].split("\n## ")[0]
    quoted = re.findall(r"`(?:\w+\.)*(_?[A-Z]\w*[a-z]\w*)(?:\.\w+)*`", terms)
    assert len(quoted) > 20
    assert sorted(set(quoted) - classes().keys()) == []


def test_a_name_means_one_thing() -> None:
    """A type variable means nothing by itself, and a private name is read in its file alone."""
    public = {name: places for name, places in classes().items() if name[0] != "_"}
    assert {name: places for name, places in public.items() if len(places) > 1} == {}


def test_words_that_are_not_the_fields_are_gone() -> None:
    for gone in ("Judge", "Handle", "Ticket", "Arm"):
        assert gone not in classes()
