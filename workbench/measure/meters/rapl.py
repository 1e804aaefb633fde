"""RAPL: the energy counters of x86 processors, through Linux's powercap folders.

Zones overlap (cores lie inside their package, psys around everything), so only packages and
the DRAM beside them are read, never the sum of all. The counters are readable by root alone
since CVE-2020-8694, and most virtual machines have none. Intel measures since Haswell; AMD's
Zen computes the value from activity (Schoene et al. 2021, arXiv:2108.00808), so there the
kind is ``modelled``.
"""

from __future__ import annotations

import platform
from pathlib import Path

from workbench.machine.cpu import cpu
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.sample import Channel, Kind, Sample

POWERCAP = Path("/sys/class/powercap")
UPDATE_S = 0.001
RESOLUTION_J = 61e-6
"""2**-14 J, the unit of Intel's counters; AMD's is finer."""


class RaplMeter:
    """Reads every package and its DRAM at once; one zone that fails fails the reading."""

    source = "rapl"

    def __init__(self, zones: dict[Channel, Path], clock: Clock = SYSTEM_CLOCK) -> None:
        self.zones, self._clock = zones, clock

    def read(self) -> list[Sample]:
        samples = []
        for channel, folder in self.zones.items():
            energy_uj = int((folder / "energy_uj").read_text())
            now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
            samples.append(Sample(channel, now_s, wall_s, energy_uj / 1e6))
        return samples

    def close(self) -> None:
        """Nothing is kept open."""


def find_rapl(root: Path = POWERCAP, clock: Clock = SYSTEM_CLOCK) -> RaplMeter:
    """The meter of this machine's packages. Raises OSError with the reason where there is none."""
    if not root.is_dir():
        system = platform.system()
        where = "absent in most virtual machines" if system == "Linux" else "a Linux interface"
        raise OSError(f"no {root}: {where}")
    kind: Kind = "modelled" if cpu().vendor == "AuthenticAMD" else "measured"
    zones: dict[Channel, Path] = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        name = (folder / "name").read_text().strip()
        package = folder.name.split(":")[1]
        if name.startswith("package"):
            scope = name
        elif name == "dram":
            scope = f"dram-{package}"
        else:
            continue
        try:
            int((folder / "energy_uj").read_text())
            wraps_at_j = int((folder / "max_energy_range_uj").read_text()) / 1e6
        except PermissionError:
            raise OSError(
                f"{folder}/energy_uj is readable by root only (since CVE-2020-8694); "
                f"run as root, or: sudo chmod a+r {root}/intel-rapl:*/energy_uj"
            ) from None
        except ValueError:
            raise OSError(f"{folder}/energy_uj holds no number") from None
        channel = Channel("rapl", scope, "energy", kind, RESOLUTION_J, UPDATE_S, wraps_at_j)
        zones[channel] = folder
    if not any(channel.scope.startswith("package") for channel in zones):
        raise OSError(f"{root} has no package zone")
    return RaplMeter(zones, clock)
