"""The GPUs that torch can use, and the driver's view of all of them.

Two sources answer two questions. The driver (NVML) is asked without importing torch, which
takes seconds, because every stage's key needs the answer. torch is asked by what computes
on a GPU or meters it, because only torch knows which device it will use.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """``index`` and ``uuid`` as the driver gives them; ``memory_mib``: the whole device's."""

    index: int
    uuid: str
    name: str
    memory_mib: int


@contextmanager
def nvml() -> Iterator[ModuleType]:
    """NVML, initialised for the length of the block. Raises OSError where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise OSError(f"no NVIDIA driver: {error}") from None
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


@functools.lru_cache(maxsize=1)
def visible_gpus() -> tuple[Gpu, ...]:
    """The driver's GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible, in the driver's order."""
    try:
        with nvml() as driver:
            found = []
            for index in range(driver.nvmlDeviceGetCount()):
                handle = driver.nvmlDeviceGetHandleByIndex(index)
                memory = driver.nvmlDeviceGetMemoryInfo(handle)
                uuid = _text(driver.nvmlDeviceGetUUID(handle))
                name = _text(driver.nvmlDeviceGetName(handle))
                found.append(Gpu(index, uuid, name, int(memory.total) // MIB))
    except OSError:
        return ()
    return select_visible(tuple(found), os.environ.get("CUDA_VISIBLE_DEVICES"))


def select_visible(gpus: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """Those of ``gpus`` that a ``CUDA_VISIBLE_DEVICES`` value names, by index or UUID.

    As CUDA does, the list ends at the first entry that names no device.
    """
    if setting is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        match = next(
            (g for g in gpus if entry == str(g.index) or (entry and g.uuid.startswith(entry))), None
        )
        if match is None:
            break
        chosen.append(match)
    return tuple(chosen)


def driver_version() -> str | None:
    """Version of the NVIDIA driver, or None where there is none."""
    try:
        with nvml() as driver:
            return _text(driver.nvmlSystemGetDriverVersion())
    except OSError:
        return None


def torch_gpu() -> tuple[str | None, str]:
    """(name of the GPU that torch will use or None, why there is none)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0), ""
    if torch.version.cuda is None and torch.version.hip is None:
        reason = f"torch {torch.__version__} was built without CUDA"
        if visible_gpus():
            reason += f", although the driver shows {visible_gpus()[0].name}"
        return None, reason
    return None, "torch finds no CUDA device"


def torch_gpu_memory() -> tuple[int, int]:
    """(free, total) bytes of torch's GPU 0; only where :func:`torch_gpu` names one."""
    import torch

    return torch.cuda.mem_get_info(0)


def free_gpu_memory() -> list[int]:
    """Free bytes of each visible GPU, as the driver says it: asking torch would take half a GB of
    each. Empty where the driver cannot be asked."""
    try:
        with nvml() as driver:
            handles = [driver.nvmlDeviceGetHandleByIndex(gpu.index) for gpu in visible_gpus()]
            return [int(driver.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles]
    except OSError:
        return []


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
