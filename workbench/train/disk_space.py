"""A full disk, told apart from a fault of the program.

The writers of checkpoints report it in their own ways: safetensors wraps the system's text,
and ``torch.save`` says only that its zip writer failed.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from workbench.errors import StageError
from workbench.paths import shown
from workbench.train.trainer import KEPT_CHECKPOINTS

FULL_DISK_WORDS = ("No space left", "inline_container", "PytorchStreamWriter")
"""Of safetensors, and of torch's zip writer, which has no other failure than a short write."""

BYTES_A_PARAMETER = 12
"""float32 weights and AdamW's two moments."""


def checkpoint_bytes(parameters: int) -> int:
    """Of the checkpoints that are kept and the one being written, of a model of ``parameters``."""
    return parameters * BYTES_A_PARAMETER * (KEPT_CHECKPOINTS + 1)


def require_disk_space(
    model: torch.nn.Module, folder: Path, handed_over: Sequence[torch.nn.Module | None] = ()
) -> None:
    """StageError unless the checkpoints of ``model`` fit: the kept ones and the one written, and
    the models that are handed over to other processes through a file."""
    parameters = sum(p.numel() for p in model.parameters())
    needed = checkpoint_bytes(parameters)
    needed += sum(p.nbytes for each in handed_over if each for p in each.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StageError(
            f"checkpoints of {parameters / 1e6:.1f}M parameters need {needed / 1e9:.2f} GB in "
            f"{shown(folder)}; {free / 1e9:.2f} GB are free",
            next_step="free some space, or set WORKBENCH_RUNS to a folder on a larger disk",
        )


@contextmanager
def reporting_full_disk(folder: Path) -> Iterator[None]:
    """Turn the writers' errors on a full disk into a StageError that says so."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_disk_full(error):
            raise
        raise StageError(
            f"no space left on the disk of {shown(folder)} while writing a checkpoint",
            next_step="free some space, and the same command goes on from the last whole "
            "checkpoint",
        ) from error


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(words in str(error) for words in FULL_DISK_WORDS)
