"""What there is to know about the machine, as plain data for the record and the report."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.machine.compiler import find_compiler
from workbench.machine.cpu import cpu
from workbench.machine.gpu import driver_version, torch_gpu, visible_gpus
from workbench.machine.memory import memory
from workbench.paths import runs_root


def describe_machine() -> dict[str, Any]:
    """Processor, memory, GPUs, compiler and disk of this machine at this moment."""
    compiler = find_compiler()
    gpu_name, no_gpu = torch_gpu()
    return {
        "cpu": {**asdict(cpu()), "features": list(cpu().features)},
        "memory": asdict(memory()),
        "gpus": [asdict(gpu) for gpu in visible_gpus()],
        "torch_gpu": gpu_name,
        "no_torch_gpu_because": no_gpu or None,
        "nvidia_driver": driver_version(),
        "compiler": asdict(compiler) if compiler else None,
        "disk_free_bytes": shutil.disk_usage(_existing(runs_root())).free,
    }


def _existing(path: Path) -> Path:
    """The nearest folder above that exists: the disk that will hold the runs."""
    return path if path.exists() else _existing(path.parent)
