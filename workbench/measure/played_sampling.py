"""What sampling takes of a core, beside the work that is metered.

    python -m workbench.measure.played_sampling      # part of make energy, a minute

Devices play their meters in a process apart; this one only samples. Two rows
``sampling_cpu_share`` go to ``docs/results/energy.jsonl``: of eight sources of all sorts, of which
what is on this machine is read ten times a second and a device over the network asked once a
second, as sessions do; and of eight counters, all of them read ten times a second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.measure.meters import EnergySession
from workbench.measure.meters.csv_log import CsvMeter
from workbench.measure.meters.find import DEVICES
from workbench.measure.meters.polled import PolledMeter
from workbench.measure.meters.rapl import find_rapl
from workbench.measure.meters.sample import Meter
from workbench.measure.played import write_rows
from workbench.pilot.sections.meters import ModbusMeter, RedfishMeter, SnmpMeter

SECONDS, INTERVAL_S, MOST = 30.0, 0.1, 0.01
DEVICES_APART = """
import select
import sys
import time
from pathlib import Path
from workbench.measure.simulators.json_service import JsonService, redfish
from workbench.measure.simulators.modbus_device import ModbusPlayer
from workbench.measure.simulators.snmp_agent import SnmpAgent
pdu = "1.3.6.1.4.1.318.1.1.26.4.3.1"
devices = [
    SnmpAgent({f"{pdu}.5.1": lambda: 41, f"{pdu}.9.1": lambda: 7}),
    JsonService(redfish(lambda: 400)),
    ModbusPlayer({52: ("f", lambda: 400.0), 72: ("f", lambda: 1.0)}),
]
log = Path(sys.argv[1])
log.write_text("timestamp,source,watts\\n")
print(*(device.port for device in devices), flush=True)
while not select.select([sys.stdin], [], [], 1.0)[0]:
    with log.open("a") as file:
        file.write(f"{time.time()},pdu,400\\n")
"""


def counters(folder: Path, zones: int) -> Meter:
    """Laid out like powercap; the counters stand still, which costs as much to read."""
    for zone in range(zones):
        path = folder / f"intel-rapl:{zone}"
        path.mkdir()
        (path / "name").write_text(f"package-{zone}\n")
        (path / "energy_uj").write_text(f"{zone + 1}000000\n")
        (path / "max_energy_range_uj").write_text("65532610987\n")
    return find_rapl(folder)


@contextmanager
def all_sorts(folder: Path) -> Iterator[list[Meter]]:
    """A log, four counters, an SNMP agent, a Redfish service and a Modbus device."""
    command = [sys.executable, "-c", DEVICES_APART, str(folder / "power.csv")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as apart:
        assert apart.stdin and apart.stdout
        snmp, redfish, modbus = map(int, apart.stdout.readline().split())
        asked: list[tuple[str, Any]] = [
            ("snmp", SnmpMeter(host="127.0.0.1", port=snmp, profile="apc")),
            ("redfish", RedfishMeter(url=f"http://127.0.0.1:{redfish}", chassis="1")),
            ("modbus", ModbusMeter(host="127.0.0.1", port=modbus, preset="sdm630")),
        ]
        devices = [
            PolledMeter(DEVICES[reader](section), section.period_s, section.timeout_s)
            for reader, section in asked
        ]
        try:
            yield [*devices, CsvMeter(folder / "power.csv"), counters(folder, 4)]
        finally:
            apart.stdin.close()


def cpu_share(meters: Sequence[Meter], name: str, seconds: float = SECONDS) -> dict[str, Any]:
    """The row of a session that reads ``meters`` and does nothing else."""
    with EnergySession(meters, interval_s=INTERVAL_S) as session:
        began_s, busy_s = time.monotonic(), time.process_time()
        time.sleep(seconds)
        share = (time.process_time() - busy_s) / (time.monotonic() - began_s)
        samples = len(session.samples())
    return {
        "name": "sampling_cpu_share", "meter": name, "period_s": INTERVAL_S,
        "value": round(share, 5), "hi": MOST, "covered": share < MOST, "samples": samples,
        "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, all_sorts(Path(folder)) as meters:
        made = [cpu_share(meters, "8 sources")]
    with tempfile.TemporaryDirectory() as folder:
        made.append(cpu_share([counters(Path(folder), 8)], "8 counters"))
    print(*map(json.dumps, made), sep="\n")
    write_rows(made)


if __name__ == "__main__":
    main()
