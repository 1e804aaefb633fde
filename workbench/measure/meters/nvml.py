"""NVML: the total energy counter of NVIDIA GPUs, and their power as a cross-check.

The counter (Volta and newer, mJ, renewed about every 0.1 s) is preferred. Polled power misses
most of the run time on A100 and H100, so it only stands in where there is no counter, and
otherwise checks it: the session warns where the two differ by more than 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType
from typing import Any

from workbench.errors import reason_of
from workbench.machine.gpu import nvml, torch_gpu, visible_gpus
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.sample import Channel, MeterFault, Sample

PERIOD_S = 0.1


class NvmlMeter:
    """Reads counter and power of each GPU handle, whichever of them the GPU has."""

    reader = "nvml"

    def __init__(
        self,
        driver: ModuleType,
        handles: dict[str, Any],
        stack: ExitStack,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """handles: place -> NVML handle. stack: closed with the meter (NVML's shutdown).

        Raises OSError when a GPU answers neither question.
        """
        self._driver, self._stack, self._clock = driver, stack, clock
        self.notes: list[str] = []
        self._questions: list[tuple[Channel, Any, Any]] = []
        for place, handle in handles.items():
            counter = Channel(
                "nvml", place, "gpu", "energy",
                period_s=PERIOD_S, averaging_s=0.0, lag_s=0.0, resolution=1e-3,
            )  # fmt: skip
            # Newer boards average their power, over what differs.
            power = replace(counter, quantity="power", averaging_s=None, lag_s=None)
            offered = (
                (counter, driver.nvmlDeviceGetTotalEnergyConsumption),
                (power, driver.nvmlDeviceGetPowerUsage),
            )
            answered = [(channel, ask) for channel, ask in offered if self._answers(ask, handle)]
            if not answered:
                raise OSError(f"{place} reports neither energy nor power")
            self._questions += [(channel, ask, handle) for channel, ask in answered]

    def _answers(self, ask: Any, handle: Any) -> bool:
        try:
            ask(handle)
        except self._driver.NVMLError:
            return False
        return True

    def read(self) -> list[Sample | MeterFault]:
        samples: list[Sample | MeterFault] = []
        for channel, ask, handle in self._questions:
            try:
                thousandths = ask(handle)
            except self._driver.NVMLError as error:
                # One board that fails costs the others nothing.
                text = f"{channel.place} {channel.quantity}: {reason_of(error)}"
                samples.append(MeterFault(text, "no_answer", channel))
                continue
            now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
            # Both come in thousandths: mJ and mW.
            samples.append(Sample(channel, now_s, wall_s, thousandths / 1e3))
        return samples

    def close(self) -> None:
        self._stack.close()


def find_nvml(gpus: Sequence[int] | None = (0,)) -> NvmlMeter:
    """The meter of torch's GPUs ``gpus``, or of all that the driver shows for None, which needs no
    torch. Raises OSError with the reason where there is none."""
    places = _driver_uuids() if gpus is None else _torch_uuids(gpus)
    with ExitStack() as stack:
        driver = stack.enter_context(nvml())
        handles = {}
        for place, uuid in places.items():
            try:
                handles[place] = driver.nvmlDeviceGetHandleByUUID(uuid)
            except driver.NVMLError as error:
                raise OSError(f"the driver does not know torch's {place}: {error}") from None
        return NvmlMeter(driver, handles, stack.pop_all())


def _torch_uuids(gpus: Sequence[int]) -> dict[str, str]:
    """Place -> UUID: torch and the driver may number the GPUs differently; the UUID is the same."""
    import torch

    name, reason = torch_gpu()
    if name is None:
        raise OSError(reason)
    uuids = (str(torch.cuda.get_device_properties(index).uuid) for index in gpus)
    return {
        f"gpu{index}": f"GPU-{uuid.removeprefix('GPU-')}"
        for index, uuid in zip(gpus, uuids, strict=True)
    }


def _driver_uuids() -> dict[str, str]:
    found = visible_gpus()
    if not found:
        with nvml():
            raise OSError("the NVIDIA driver shows no GPU")
    return {f"gpu{gpu.index}": gpu.uuid for gpu in found}
