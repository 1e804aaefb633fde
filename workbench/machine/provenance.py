"""Where a committed figure comes from: the commit and the machine, in the words of one line."""

from __future__ import annotations

from workbench.machine.cpu import cpu
from workbench.machine.device import Asked, choose_device
from workbench.machine.environment import git_state
from workbench.machine.gpu import torch_gpu
from workbench.wording.counts import number_of


def provenance(device: Asked = "auto") -> dict[str, str]:
    """``commit`` (and whether the tree had changes) and ``machine``: of the device that computed,
    as ``readiness.device`` names it."""
    git = git_state()
    commit = (git["commit"] or "unknown")[:12]
    return {
        "commit": f"{commit} with changes" if git["dirty"] else commit,
        "machine": machine_name(device),
    }


def machine_name(device: Asked = "auto") -> str:
    """The GPU that computes, or the processor and its cores."""
    if choose_device(device).name == "cuda" and (gpu := torch_gpu()[0]):
        return gpu
    return f"{cpu().model}, {number_of(cpu().usable_cores, 'core')}"
