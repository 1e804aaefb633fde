"""Checkpoints that are whole or do not count.

``transformers.Trainer`` writes a checkpoint file by file into its final folder, so a kill in
between leaves a folder that looks like a checkpoint. A marker with the size of every file is
written last; a folder without it, or whose files differ from it, is not whole and is removed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from workbench.files import read_json, write_json

MARKER = "whole.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_whole(folder: Path) -> None:
    """Declare the checkpoint in ``folder`` whole, after its files have reached the disk."""
    files = _files(folder)
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    write_json(folder / MARKER, {"files": files})


def is_whole(folder: Path) -> bool:
    try:
        return read_json(folder / MARKER)["files"] == _files(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def last_whole(root: Path) -> tuple[Path, int] | None:
    """The newest whole checkpoint below ``root`` and its step; those not whole are removed."""
    best = None
    for folder in root.glob("checkpoint-*"):
        match = _NAME.fullmatch(folder.name)
        if match is None:
            continue
        if not is_whole(folder):
            shutil.rmtree(folder)
        elif best is None or int(match[1]) > best[1]:
            best = folder, int(match[1])
    return best


def _files(folder: Path) -> dict[str, int]:
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name != MARKER)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(paths)}
