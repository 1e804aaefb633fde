"""Chains of pilot files: shipped ones from anywhere, several levels, no circles."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from workbench import paths
from workbench.errors import ConfigError
from workbench.paths import SHIPPED
from workbench.pilot.resolve import resolve
from workbench.pilot.yaml_file import read_yaml

ROOT = Path(__file__).parents[2]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def problem(path: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(path)
    return str(caught.value)


def test_a_shipped_pilot_is_extended_from_anywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "own.yaml", "extends: workbench:base\nname: own\ntrain: {steps: 9}\n")
    resolved = resolve(path)
    assert resolved.pilot.report.gates == resolve(ROOT / "pilots" / "base.yaml").pilot.report.gates
    sources = {name: source for name, _, source in resolved.leaves()}
    assert sources["train.steps"] == "own.yaml:3"
    assert sources["train.distillation.teacher"] == f"{ROOT / 'pilots' / 'base.yaml'}:8"


def test_a_shipped_pilot_is_named_on_the_command_line_too() -> None:
    assert resolve(f"{SHIPPED}smoke").path == ROOT / "pilots" / "smoke.yaml"
    assert "did you mean smoke?" in problem(f"{SHIPPED}smoky")


def test_a_folder_and_other_files_are_no_pilot(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    assert "text: is a folder" in problem("text")
    assert "workbench new PILOT.yaml --data text" in problem("text")
    write(tmp_path / "text", "a.yaml", "name: a\n")
    assert "name one of its files: text/a.yaml" in problem("text")
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe\x00")
    assert "is no UTF-8 text" in problem("model.bin") and "next: " in problem("model.bin")


def test_a_copy_of_a_shipped_pilot_still_resolves(tmp_path) -> None:
    """But of one that names files beside itself."""
    for path in set((ROOT / "pilots").glob("*.yaml")) - {ROOT / "pilots" / "smollm2.yaml"}:
        copy = write(tmp_path, path.name, path.read_text(encoding="utf-8"))
        assert resolve(copy).values == resolve(path).values


def test_the_nearer_file_wins_over_several_levels(tmp_path) -> None:
    write(tmp_path, "team.yaml", "extends: workbench:quickstart\ntrain: {lr: 0.5, batch_size: 2}\n")
    write(tmp_path, "node.yaml", "extends: team.yaml\ntrain: {lr: 0.25}\n")
    path = write(tmp_path, "chat.yaml", "extends: node.yaml\nname: chat\n")
    pilot = resolve(path).pilot
    train = pilot.train
    steps = resolve("workbench:quickstart").pilot.train.steps
    assert (train.lr, train.batch_size, train.steps) == (0.25, 2, steps)
    assert train.distillation.teacher == "none"  # the quickstart's: its arms are alike
    assert pilot.report.gates[0].metric == "lost_requests"  # of the base of the base of the base


def test_a_circle_is_shown_with_its_whole_chain(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.yaml", "name: a\nextends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: c.yaml\n")
    write(tmp_path, "c.yaml", "extends: ./a.yaml\n")
    text = problem(tmp_path / "a.yaml")
    assert "c.yaml:1: extends goes in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml" in text
    assert "circle: d.yaml -> d.yaml" in problem(write(tmp_path, "d.yaml", "extends: d.yaml\n"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "workbench:bse",
            "own.yaml:1: extends: workbench:bse: no shipped pilot has that name; did",
        ),
        ("workbench:../base", "no shipped pilot has that name"),
        ("base.yaml", "next:    write workbench:base"),
        ("[a, b]", "allowed: the name of one pilot file"),
    ],
)
def test_a_base_that_is_not_there_says_what_is(tmp_path, name: str, expected: str) -> None:
    assert expected in problem(write(tmp_path, "own.yaml", f"extends: {name}\n"))


def test_without_a_link_the_checkout_s_own_folder_is_taken(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "paths.py"))
    assert paths.shipped_pilots() == ROOT / "pilots"


@pytest.mark.slow
def test_a_wheel_has_the_shipped_pilots(tmp_path) -> None:
    """Unpacked elsewhere and without a checkout, the package resolves a pilot by itself."""
    source = tmp_path / "source"
    for name in ("workbench", "kernels", "pilots"):
        ignored = shutil.ignore_patterns("_native", "__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    own = write(tmp_path, "own.yaml", "extends: workbench:smoke\nname: own\n")
    code = f"""
from workbench.pilot.resolve import resolve
from workbench.pilot.yaml_file import read_yaml
import workbench
assert workbench.__file__.startswith({str(installed)!r}), workbench.__file__
print(resolve({str(own)!r}).pilot.train.steps)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "24\n", done.stderr


def test_shipped_pilots_speak_both_languages() -> None:
    """Where a gate says why, and where the question is a pilot's own; studies print English."""
    for path in (ROOT / "pilots").glob("*.yaml"):
        values = read_yaml(path).values
        whys = [gate["why"] for gate in values.get("report", {}).get("gates", []) if "why" in gate]
        asked = [] if path.stem.startswith(("study", "base")) else [values["question"]]
        for text in whys + asked:
            assert list(text) == ["en", "ru"], path.name
            assert re.search("[а-я]", text["ru"]) and not re.search("[а-я]", text["en"])


def test_another_pilot_s_question_is_replaced_in_all_languages(tmp_path) -> None:
    write(tmp_path, "one.yaml", "extends: workbench:smoke\nquestion: {en: Does it pay?}\n")
    assert resolve(tmp_path / "one.yaml").pilot.question == {"en": "Does it pay?"}
    write(tmp_path, "two.yaml", "extends: one.yaml\nquestion: Does it?\n")
    assert resolve(tmp_path / "two.yaml").pilot.question == "Does it?"
