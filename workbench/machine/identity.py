"""Which machine this is, for the keys of stages whose result is about the machine.

Only what decides the speed or the bits of a result and stays the same from minute to minute:
free memory, load, clock rates and the host's name are left out, and torch is not imported.
"""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from workbench.files import digest_json
from workbench.machine.cpu import cpu, quota_cores
from workbench.machine.gpu import visible_gpus


def machine_identity() -> dict[str, Any]:
    """The facts that :func:`machine_digest` digests."""
    processor = cpu()
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = None
    return {
        "architecture": processor.architecture,
        "cpu": processor.model,
        "features": list(processor.features),
        "cores": processor.cores,
        "quota_cores": quota_cores(),
        "gpus": [{"name": gpu.name, "memory_mib": gpu.memory_mib} for gpu in visible_gpus()],
        "torch": torch_version,
    }


@functools.lru_cache(maxsize=1)
def machine_digest() -> str:
    """16 hexadecimal digits that change when another machine, GPU or torch is used."""
    return digest_json(machine_identity())
