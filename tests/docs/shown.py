"""The commands that README and docs show, as the reader finds them.

They stand in fenced shell blocks and in code within a sentence. A word in capitals (RUN,
PILOT.yaml) stands for a thing of the reader's own; ``[--html]`` is an option that may be left out.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "deploy" / "README.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
OPTIONAL = re.compile(r" \[(-[^\]]*)\]")
HISTORY = {"log.md", "CHANGELOG.md"}
"""Their commands are those of their day."""


def commands_of(page: Path) -> set[str]:
    """Lines of shell blocks, continued ones joined, and code spans that begin as a command does."""
    text = page.read_text(encoding="utf-8")
    shell = [
        body for language, body in FENCE.findall(text) if language in ("sh", "bash", "console")
    ]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    spans = re.findall(
        r"`((?:workbench|make|python -m) [^`]+)`", FENCE.sub("", text).replace("\n", " ")
    )
    return {re.split(r"\s+#", line.strip().removeprefix("$ "))[0].strip() for line in lines + spans}


def shown() -> dict[str, str]:
    """Command -> the page that shows it (the first)."""
    found: dict[str, str] = {}
    for page in PAGES:
        if page.name not in HISTORY:
            for command in sorted(commands_of(page)):
                found.setdefault(command, str(page.relative_to(ROOT)))
    return {command: page for command, page in found.items() if command}


def calls_of(tool: str) -> list[tuple[str, str]]:
    """(page, command without what stands before the tool), once each."""
    found = {}
    for command, page in shown().items():
        begun = re.match(rf"(?:sudo )?(?:\w+=\S+ )*({tool} .*)", command)
        if begun:
            found.setdefault(begun[1], page)
    return sorted((page, command) for command, page in found.items())


def words_of(command: str) -> list[str]:
    """As a shell would split it; brackets of options dropped, the first of alternatives taken."""
    command = re.sub(r"\\?\|[^\]]*", "", command).replace("[...]", "GATES")
    return shlex.split(re.sub(r"\[(-[^\]]*)\]", r"\1", command))


def ways_of(command: str) -> list[str]:
    """The command with its options, each alternative once; those of ``run`` exclude each other."""
    options = OPTIONAL.findall(command)
    bare = OPTIONAL.sub("", command)
    if any("|" in option for option in options):
        parts = [part.strip(" \\") for option in options for part in option.split("|")]
        return [f"{bare} {part}" for part in parts]
    if bare.startswith("workbench run "):
        return [bare, *(f"{bare} {option}" for option in options)] if options else [bare]
    return [" ".join([bare, *options])]
