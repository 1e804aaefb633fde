"""What computes: decided here for every stage of a pilot, by ``readiness.device``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.errors import ConfigError
from workbench.machine.gpu import torch_gpu, torch_gpu_memory
from workbench.machine.memory import memory

Asked = Literal["auto", "cpu", "cuda"]
DeviceName = Literal["cpu", "cuda"]
GB = 1e9


@dataclass(frozen=True)
class Device:
    """name: as torch calls it. text: what it is, and why it is no GPU where it is none."""

    name: DeviceName
    text: str

    @property
    def free_bytes(self) -> int:
        """Memory that a model can take there at this moment."""
        return torch_gpu_memory()[0] if self.name == "cuda" else memory().available_bytes


def choose_device(asked: Asked) -> Device:
    """``auto`` takes the GPU that torch can use, else the CPU.

    Triton is not asked for: training and the ``transformers`` core need none on a GPU, and what
    does need it says so where it is missing. Raises ConfigError for a GPU that is not there.
    """
    name, reason = torch_gpu()
    if asked == "cuda" and name is None:
        raise ConfigError(
            f"readiness.device is cuda, but {reason}",
            allowed="cuda where torch can use a GPU; auto, cpu",
            next_step="install a torch with CUDA and its driver, or set readiness.device to auto",
        )
    if name is None:
        return Device("cpu", f"no GPU ({reason})")
    if asked == "cpu":
        return Device("cpu", f"the CPU computes, as readiness.device says, not {name}")
    free, total = torch_gpu_memory()
    return Device("cuda", f"{name} with {free / GB:.1f} of {total / GB:.1f} GB free")
