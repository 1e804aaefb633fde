"""What the tree promises: the direction of imports, light stages, and harmless names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    ("errors", "paths"),
    ("machine", "pilot", "records", "roadmap"),
    ("load",),
    ("data",),
    ("model", "ternary"),
    ("train",),
    ("engine", "measure"),
    ("hybrid", "export"),
    ("serve",),
    ("figures", "report"),
    ("stages",),
    ("runner", "bench"),
    ("study",),
    ("notebook",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
HEAVY = ("IPython", "ipykernel", "papermill", "nbformat", "nbclient", "plotly", "jupyterlab")


def run_python(code: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def imports_at_top(path: Path) -> set[str]:
    """Parts of the workbench that a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "workbench":
                names = [f"workbench.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("workbench.")}
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "workbench").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_go_one_way(path: Path) -> None:
    part = path.relative_to(ROOT / "workbench").parts[0].removesuffix(".py")
    if part == "__init__":
        assert not imports_at_top(path)
        return
    assert part in RANK, f"{part} has no place in docs/design.md's order"
    late = {other for other in imports_at_top(path) if other in RANK and RANK[other] > RANK[part]}
    assert not late, f"{path.name} imports {late}, which comes after {part}"


def test_kernels_know_nothing_of_the_workbench() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) workbench", path.read_text(), re.M), path


def test_stages_need_neither_jupyter_nor_plotly() -> None:
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(name + " must not be needed")
sys.meta_path.insert(0, Refuse())
from workbench.roadmap import STAGES
import workbench.cli, workbench.runner.pilot_run
for stage in STAGES.values():
    assert callable(stage.run), stage
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", [ROOT, ROOT / "notebooks", ROOT.parent], ids=lambda p: p.name)
def test_the_folder_kernels_does_not_shadow_a_package(folder: Path) -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    done = run_python(
        "import sys; sys.path.insert(0, ''); import transformers.models.llama", folder
    )
    assert done.returncode == 0, done.stderr


def test_no_package_lies_in_two_places() -> None:
    """setuptools looks in the root and in kernels/; a name found in both would be a lottery."""
    tops = [p.parent.name for base in (ROOT, ROOT / "kernels") for p in base.glob("*/__init__.py")]
    assert sorted(tops) == ["ternary_kernels", "workbench"]


def test_the_readme_tree_is_true() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\n(.*?)```", readme, re.S)
    assert tree, "the README shows the captioned tree in a text block"
    named = set(re.findall(r"^\s*([\w./-]+/?)\s{2,}\S", tree[1], re.M))
    parts = {f"{p.name}/" for p in (ROOT / "workbench").iterdir() if (p / "__init__.py").exists()}
    assert parts <= named, f"not in the README's tree: {sorted(parts - named)}"
    for name in named & {f"{n}/" for n in RANK}:
        assert (ROOT / "workbench" / name).is_dir(), f"the README's tree names {name}"
