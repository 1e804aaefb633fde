"""What there is to know about the machine, as plain data for the record and the report."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.machine.cpu import cpu
from workbench.machine.gpu import driver_version, torch_gpu, visible_gpus
from workbench.machine.memory import memory
from workbench.paths import runs_root


def describe_machine() -> dict[str, Any]:
    """Processor, memory, GPUs and disk of this machine at this moment, without asking torch,
    which takes seconds to import."""
    return {
        "cpu": {**asdict(cpu()), "features": list(cpu().features)},
        "memory": asdict(memory()),
        "gpus": [asdict(gpu) for gpu in visible_gpus()],
        "nvidia_driver": driver_version(),
        "disk_free_bytes": shutil.disk_usage(_existing(runs_root())).free,
    }


def describe_computing() -> dict[str, Any]:
    """What torch and the native kernels find here: the GPU or why there is none, and the
    compiler with which the kernels are built where they are not built yet."""
    gpu_name, no_gpu = torch_gpu()
    return {
        "torch_gpu": gpu_name,
        "no_torch_gpu_because": no_gpu or None,
        "compiler": _compiler(),
    }


def _compiler() -> dict[str, str | None] | None:
    from ternary_kernels import build

    try:
        command = build.find_compiler()
    except build.BuildError:
        return None
    return {"path": shlex.join(command), "version": build.compiler_version(command)}


def _existing(path: Path) -> Path:
    """The nearest folder above that exists: the disk that will hold the runs."""
    return path if path.exists() else _existing(path.parent)
