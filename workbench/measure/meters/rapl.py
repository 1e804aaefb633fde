"""RAPL: the energy counters of x86 processors, through Linux's powercap folders.

Zones overlap (cores lie inside their package, psys around everything), so only packages and
the DRAM beside them are read, never the sum of all. Nor are all packages different ones: the dies
of one socket may show the same counter twice, and a counter that another one follows at every look
is left out, and said. The counters are readable by root alone since CVE-2020-8694, and most
virtual machines have none. Intel measures since Haswell; AMD's Zen computes the value from
activity (Schoene et al. 2021, arXiv:2108.00808), so there the kind is ``modelled``.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from workbench.machine.cpu import cpu
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.sample import Channel, MeterFault, Sample, SampleKind

POWERCAP = Path("/sys/class/powercap")
PERIOD_S = 0.001
RESOLUTION_J = 61e-6
"""2**-14 J, the unit of Intel's counters; AMD's is finer."""


class RaplMeter:
    """Reads every package and its DRAM at once; one zone that fails fails the reading."""

    reader = "rapl"

    def __init__(self, zones: dict[Channel, str], clock: Clock = SYSTEM_CLOCK) -> None:
        """zones: each with the path of its counter. Raises OSError or ValueError where one cannot
        be read."""
        self.notes: list[str] = []
        self._clock = clock
        self.zones = self._without_mirrors(zones)

    def read(self) -> list[Sample | MeterFault]:
        samples: list[Sample | MeterFault] = []
        for channel, path in self.zones.items():
            energy_uj = _energy_uj(path)
            now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
            samples.append(Sample(channel, now_s, wall_s, energy_uj / 1e6))
        return samples

    def close(self) -> None:
        """Nothing is kept open."""

    def _without_mirrors(self, zones: dict[Channel, str]) -> dict[Channel, str]:
        """A zone whose counter lies between two looks at another one of its sort is that one:
        apart, two counters of hundreds of kilojoules are not a few microjoules from each other."""
        kept: dict[Channel, str] = {}
        for channel, path in zones.items():
            for other, of in kept.items():
                same_sort = (
                    _sort(other) == _sort(channel) and other.wraps_at_j == channel.wraps_at_j
                )
                if same_sort and _energy_uj(of) <= _energy_uj(path) <= _energy_uj(of):
                    self.notes.append(
                        f"{channel.place} shows the counter of {other.place} again and is not added"
                    )
                    break
            else:
                kept[channel] = path
        return kept


def find_rapl(root: Path = POWERCAP, clock: Clock = SYSTEM_CLOCK) -> RaplMeter:
    """The meter of this machine's packages. Raises OSError with the reason where there is none."""
    if not root.is_dir():
        system = platform.system()
        where = "absent in most virtual machines" if system == "Linux" else "a Linux interface"
        raise OSError(f"no {root}: {where}")
    kind: SampleKind = "modelled" if cpu().vendor == "AuthenticAMD" else "measured"
    zones: dict[Channel, str] = {}
    # Not intel-rapl-mmio:*, a second way to the same counters.
    for folder in sorted(root.glob("intel-rapl:*")):
        name = (folder / "name").read_text().strip()
        package = folder.name.split(":")[1]
        if name.startswith("package"):
            place = name
        elif name == "dram":
            place = f"dram-{package}"
        else:
            continue
        counter = str(folder / "energy_uj")
        try:
            _energy_uj(counter)
            wraps_at_j = int((folder / "max_energy_range_uj").read_text()) / 1e6
        except PermissionError:
            raise OSError(
                f"{folder}/energy_uj is readable by root only (since CVE-2020-8694); "
                f"run as root, or: sudo chmod a+r {root}/intel-rapl:*/energy_uj"
            ) from None
        except ValueError:
            raise OSError(f"{folder}/energy_uj holds no number") from None
        channel = Channel(
            "rapl", place, "cpu", "energy", kind, period_s=PERIOD_S, averaging_s=0.0, lag_s=0.0,
            resolution=RESOLUTION_J, wraps_at_j=wraps_at_j,
        )  # fmt: skip
        zones[channel] = counter
    if not any(channel.place.startswith("package") for channel in zones):
        raise OSError(f"{root} has no package zone")
    return RaplMeter(zones, clock)


def _energy_uj(path: str) -> int:
    """Without Python's layers of a text file, which take four times as long."""
    file = os.open(path, os.O_RDONLY)
    try:
        return int(os.read(file, 32))
    finally:
        os.close(file)


def _sort(channel: Channel) -> str:
    return channel.place.split("-")[0]
