"""What the tree promises: the direction of imports, light stages, and harmless names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


def parts_of_the_workbench() -> set[str]:
    """The packages and modules right below workbench/."""
    folder = ROOT / "workbench"
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return packages | {path.stem for path in folder.glob("*.py")} - {"__init__"}


def imported_names(path: Path) -> set[str]:
    """Dotted names that a file imports, at its top or within a function.

    What only a type checker imports does not count. A dotted name in a string does
    (``import_module(f"workbench.figures.{name}")``, ``python -m workbench.serve.main``): it is
    an import that no import statement shows.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(level=0, module="workbench"):
                found |= {f"workbench.{alias.name}" for alias in node.names}
            case ast.ImportFrom(level=0, module=str(module)):
                found.add(module)
            case ast.ImportFrom():
                raise AssertionError(f"{path}: imports are written from the root, not with dots")
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.Constant(value=str(text)) if re.fullmatch(r"workbench(\.\w+)+\.?", text):
                found.add(text)
    return found


def import_graph() -> dict[str, dict[str, str]]:
    """Part of the workbench -> part that it imports -> one file that does."""
    parts = parts_of_the_workbench()
    graph: dict[str, dict[str, str]] = {part: {} for part in parts}
    for path in sorted((ROOT / "workbench").rglob("*.py")):
        part = path.relative_to(ROOT / "workbench").parts[0].removesuffix(".py")
        for name in imported_names(path):
            top, _, inner = name.partition(".")
            other = inner.partition(".")[0]
            if top == "workbench" and other in parts - {part}:
                graph.setdefault(part, {}).setdefault(other, str(path.relative_to(ROOT)))
    return graph


def documented_order() -> dict[str, int]:
    """Part -> its place in the order of docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    order = re.search(r"^Imports go one way.*?\n\n(.*?)\n\n", text, re.S | re.M)
    assert order, "docs/design.md gives the order of imports"
    steps = " ".join(order[1].split()).split("->")
    return {name: place for place, step in enumerate(steps) for name in re.findall(r"\w+", step)}


def test_imports_know_no_circle() -> None:
    graph = import_graph()
    assert "__init__" not in graph, "workbench/__init__.py imports nothing of its own"
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = error.args[1]
        pairs = zip(circle[1:], circle, strict=False)
        files = "; ".join(f"{one} -> {other} in {graph[one][other]}" for one, other in pairs)
        raise AssertionError(f"packages import each other: {files}") from None


def test_imports_go_the_documented_way() -> None:
    place, graph = documented_order(), import_graph()
    assert set(place) == parts_of_the_workbench(), "docs/design.md orders what there is, all of it"
    wrong = [
        f"{file}: {part} imports {other}, which stands beside or after it"
        for part, others in graph.items()
        for other, file in others.items()
        if place[other] >= place[part]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("def f():\n    from workbench.stages import find", {"workbench.stages"}),
        ("from workbench import paths", {"workbench.paths"}),
        ("import workbench.cli as c", {"workbench.cli"}),
        ("import_module(f'workbench.figures.{name}')", {"workbench.figures."}),
        ("run(['-m', 'workbench.serve.main'])", {"workbench.serve.main"}),
        ("if TYPE_CHECKING:\n    from workbench.stages import find", set()),
        ("if typing.TYPE_CHECKING:\n    import a\nelse:\n    import b", {"b"}),
        ("print('workbench run PILOT.yaml')", set()),
    ],
)
def test_no_import_escapes(tmp_path: Path, code: str, names: set[str]) -> None:
    file = tmp_path / "some.py"
    file.write_text(code)
    assert imported_names(file) == names


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
from workbench.stages.find import stage_run
import workbench.cli, workbench.runner.pilot_run
for name in STAGES:
    assert callable(stage_run(name)), name
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


LIGHT_STAGE = """
import sys
from pathlib import Path
import workbench.cli
from workbench.pilot.resolve import resolve
from workbench.runner.pilot_run import run_stage
pilot = Path(sys.argv[1]) / "pilot.yaml"
pilot.write_text("name: light\\nquestion: what does a stage import\\n")
record = run_stage("profile_load", resolve(pilot))
assert record.metrics and (record.folder.parent.parent / "environment.json").exists()
"""
COMMAND = """
import sys
from workbench.cli import app
try:
    app(sys.argv[2:])
except SystemExit as end:
    assert not end.code, end.code
"""
TOLD = (
    "\nprint(sorted({'torch', 'transformers', 'plotly', 'papermill', 'pandas'} & set(sys.modules)))"
)


@pytest.mark.parametrize(
    ("code", "arguments", "imported"),
    [
        (LIGHT_STAGE, (), "['pandas']"),
        (COMMAND, ("--help",), "[]"),
        (COMMAND, ("runs",), "[]"),
    ],
    ids=["stage", "help", "runs"],
)
def test_what_needs_no_model_waits_for_no_torch(
    tmp_path: Path, code: str, arguments: tuple[str, ...], imported: str
) -> None:
    """torch and transformers take ten seconds to import on a busy machine."""
    done = subprocess.run(
        [sys.executable, "-c", code + TOLD, str(tmp_path), *arguments],
        cwd=ROOT,
        env={**os.environ, "WORKBENCH_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == imported


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
    inside = set(re.findall(r"^  ([\w./-]+)", tree[1], re.M))
    for name in inside:
        assert (ROOT / "workbench" / name).exists(), f"the README's tree names {name}"
