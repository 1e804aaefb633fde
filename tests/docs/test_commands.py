"""Every command that README and docs show is one: it parses, its files and targets exist.

That they run is shown by ``test_commands_run.py``, which is slower.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer import _click as click
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import ConfigError
from workbench.pilot.resolve import resolve

_spec = importlib.util.spec_from_file_location("docs_shown", Path(__file__).with_name("shown.py"))
shown = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shown)
ROOT, calls_of = shown.ROOT, shown.calls_of
MISSING, USAGE = click.exceptions.MissingParameter, click.exceptions.UsageError


def parsed(words: list[str]) -> dict[str, object]:
    """The values that the real parser gives the last of nested commands; click's errors else."""
    command = typer.main.get_command(app)
    context = command.make_context("workbench", words, resilient_parsing=False)
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return context.params
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context.params


WORKBENCH = calls_of("workbench")
STANDS_FOR = re.compile(r"^[A-Z_]{2,}\b|\.\.\.")
READ_ONLY = (
    ["--version"],
    ["--help"],
    ["runs"],
    ["runs", "--html"],
    ["show", "workbench:quickstart"],
)
INSTALLS = "--install-completion"
"""Would write into the shell's own files: that it is an option is all that is asked."""


def test_there_are_commands() -> None:
    assert len(WORKBENCH) > 60 and len(calls_of("make")) > 10


@pytest.mark.parametrize(("page", "command"), WORKBENCH)
def test_a_command_parses(page: str, command: str) -> None:
    """A mention may leave its arguments out (``workbench serve --rule ...``): they are added."""
    words = shown.words_of(command)[1:]
    if words[0] in ("COMMAND", "--version", INSTALLS):
        assert words[0] == "COMMAND" or words[0] in CliRunner().invoke(app, ["--help"]).output
        return
    for more in ([], ["RUN"], ["profile_load", "RUN"]):
        try:
            values = parsed([*words, *more])
        except MISSING:
            continue
        break
    else:  # a command's bare name, which asks for more than one thing
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0, f"{page}: {command}"
        return
    overrides = [each for each in values.get("overrides") or [] if not STANDS_FOR.search(each)]
    asked = [f"{each.partition('=')[0]}={_value(each)}" for each in overrides]
    try:
        resolve(ROOT / "pilots" / "quickstart.yaml", asked)
    except ConfigError as error:  # the reader's own files are not here; all else must be right
        problems = error.got.splitlines()
        assert all("no such file or folder" in each for each in problems), f"{page}: {problems}"
    for word in words:
        if re.match(r"(workbench:|pilots/)[\w/.]+", word):
            name = word.replace("workbench:", "pilots/").removesuffix(".yaml")
            assert (ROOT / f"{name}.yaml").exists(), f"{page}: {word}"


def _value(override: str) -> str:
    """What an override says; [] where the page leaves a list to the reader."""
    return re.sub(r"GATES", "[]", override.partition("=")[2])


@pytest.mark.parametrize(("page", "command"), calls_of("make"))
def test_a_target_exists(page: str, command: str) -> None:
    targets = re.findall(r"^([\w.$()/-]+):", (ROOT / "Makefile").read_text(), re.M)
    asked = [word for word in shlex.split(command)[1:] if "=" not in word]
    assert asked and set(asked) <= {*targets, "-C"}, f"{page}: {command}"


@pytest.mark.parametrize("page", shown.PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """Files of the repository that a page names in code, unless they are of its own past."""
    if page.name in shown.HISTORY:
        return
    spans = re.findall(r"`([^`\n]+)`", shown.FENCE.sub("", page.read_text(encoding="utf-8")))
    named = {
        span for span in spans
        if re.fullmatch(r"(docs|workbench|kernels|tests|pilots|notebooks|deploy)/[\w./-]+", span)
    }  # fmt: skip
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("words", READ_ONLY, ids=" ".join)
def test_what_is_quick_is_run(words: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("wrong", ["runz", "run PILOT.yaml --sett a=1", "serve RUN --canari 1"])
def test_a_wrong_command_is_found(wrong: str) -> None:
    with pytest.raises(USAGE):
        parsed(shlex.split(wrong))
