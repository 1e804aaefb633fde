"""Where a committed figure comes from: the commit and the machine, in the words of one line."""

from __future__ import annotations

from workbench.machine.cpu import cpu
from workbench.machine.environment import git_state
from workbench.machine.gpu import torch_gpu


def provenance() -> dict[str, str]:
    """``commit`` (and whether the tree had changes) and ``machine``."""
    git = git_state()
    commit = (git["commit"] or "unknown")[:12]
    return {
        "commit": f"{commit} with changes" if git["dirty"] else commit,
        "machine": machine_name(),
    }


def machine_name() -> str:
    """The GPU that trains, or the processor and its cores."""
    gpu, _ = torch_gpu()
    return gpu or f"{cpu().model}, {cpu().usable_cores} cores"
