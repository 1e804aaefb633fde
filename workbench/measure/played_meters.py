"""Every reader, against a device that plays its meter: what it recovers of a known power over time.

The devices of :mod:`workbench.measure.simulators` are asked over the loopback, by the product's own
readers, on a clock that is stepped: minutes of metering take seconds. Each shows a machine's power
late and averaged, as such devices do, or counts its energy. A session learns how late by its step
test, meters a minute of requests, and then the device is killed in the middle of further requests.

NVML's library and Prometheus need processes of their own; the tests play them.

``make energy`` writes the rows ``lag_found`` and ``area_error`` of each reader to
``docs/results/energy.jsonl``, over ``RUNS`` plays each. About two minutes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.measure.meters import EnergySession
from workbench.measure.meters.clock import SteppedClock
from workbench.measure.meters.csv_log import CsvMeter
from workbench.measure.meters.find import DEVICES
from workbench.measure.meters.polled import PolledMeter
from workbench.measure.meters.rapl import find_rapl
from workbench.measure.meters.response import Response
from workbench.measure.meters.sample import Meter
from workbench.measure.played import Machine, PlayedEngine, write_rows
from workbench.measure.simulators.dcmi_bmc import DcmiBmc
from workbench.measure.simulators.json_service import JsonService, redfish
from workbench.measure.simulators.modbus_device import ModbusPlayer
from workbench.measure.simulators.snmp_agent import SnmpAgent
from workbench.pilot.sections.meters import IpmiMeter, ModbusMeter, RedfishMeter, SnmpMeter

RUNS = 5
LAG_S, AVERAGING_S, PERIOD_S = 2.0, 3.0, 1.0
REQUEST_S, BUSY_W = 1.03, 240.0
METERED_S = 60.0
KILLED_S = 16.0
"""Of the window in which the device is killed: each question then takes its time-out."""
SNMP_USER = ("monitor", "authentication-1", "encryption-1")


@dataclass
class Shown:
    """What a meter shows of a machine: the mean of ``averaging_s`` up to ``lag_s`` ago, and the
    energy so far."""

    machine: Machine
    lag_s: float = LAG_S
    averaging_s: float = AVERAGING_S

    def watts(self) -> float:
        to_s = self.machine.clock.monotonic_s() - self.lag_s
        return self.machine.mean_w(to_s - max(self.averaging_s, 1e-3), to_s)

    def joules(self) -> float:
        """Since long before the clock began."""
        began_s = -900.0
        now_s = self.machine.clock.monotonic_s()
        return self.machine.mean_w(began_s, now_s) * (now_s - began_s)


@dataclass
class PlayedDevice:
    """A meter and the device behind it. kill: end the device, whatever it is doing."""

    meter: Meter
    kill: Callable[[], None]


def polled(reader: str, section: Any, clock: SteppedClock) -> PolledMeter:
    device = DEVICES[reader](section, clock)
    return PolledMeter(device, section.period_s, section.timeout_s, clock)


@contextmanager
def snmp_v2c(shown: Shown, _: Path) -> Iterator[PlayedDevice]:
    """An APC PDU, which tells 10 W apart."""
    oids: dict[str, Callable[[], int | str | None]] = {
        "1.3.6.1.4.1.318.1.1.26.4.3.1.5.1": lambda: round(shown.watts() / 10),
        "1.3.6.1.4.1.318.1.1.26.4.3.1.9.1": lambda: -1,
    }
    with SnmpAgent(oids) as agent:
        section = SnmpMeter(
            host="127.0.0.1", port=agent.port, profile="apc", scope="node", timeout_s=0.2
        )
        yield PlayedDevice(polled("snmp", section, shown.machine.clock), agent.close)


@contextmanager
def snmp_v3(shown: Shown, _: Path) -> Iterator[PlayedDevice]:
    """A Raritan PDU, with a decimal digit; the passwords must be in the environment."""
    value, digits = "1.3.6.1.4.1.13742.6.5.2.3.1.4.1.1", "1.3.6.1.4.1.13742.6.3.3.4.1.7.1.1"
    oids: dict[str, Callable[[], int | str | None]] = {
        f"{value}.5": lambda: round(10 * shown.watts()),
        f"{digits}.5": lambda: 1,
        f"{value}.8": lambda: round(shown.joules() / 3600),
        f"{digits}.8": lambda: 0,
    }
    with SnmpAgent(oids, v3=SNMP_USER) as agent:
        section = SnmpMeter(
            host="127.0.0.1", port=agent.port, profile="raritan", scope="node", timeout_s=0.2,
            user=SNMP_USER[0], auth_env="PLAYED_AUTH", privacy_env="PLAYED_PRIVACY",
        )  # fmt: skip
        yield PlayedDevice(polled("snmp", section, shown.machine.clock), agent.close)


@contextmanager
def redfish_power(shown: Shown, _: Path) -> Iterator[PlayedDevice]:
    """A BMC of before 2020: ``Power``, in whole watts."""
    with JsonService(redfish(lambda: round(shown.watts()))) as service:
        section = RedfishMeter(url=service.url, timeout_s=0.2)
        yield PlayedDevice(polled("redfish", section, shown.machine.clock), service.close)


@contextmanager
def redfish_metrics(shown: Shown, _: Path) -> Iterator[PlayedDevice]:
    """``EnvironmentMetrics``, whose counter is too coarse to stand for the power."""
    paths = redfish(lambda: round(shown.watts(), 1), lambda: round(shown.joules() / 3.6e6, 3))
    with JsonService(paths) as service:
        section = RedfishMeter(url=service.url, chassis="1", timeout_s=0.2)
        yield PlayedDevice(polled("redfish", section, shown.machine.clock), service.close)


@contextmanager
def ipmi(shown: Shown, _: Path) -> Iterator[PlayedDevice]:
    """A BMC that Debian's ``ipmitool`` asks; the password must be in the environment."""
    bmc = DcmiBmc(shown.watts, {"admin": "bmc-password"})

    def kill() -> None:
        bmc.deaf = True

    section = IpmiMeter(
        host="127.0.0.1", port=bmc.port, user="admin", password_env="PLAYED_BMC", timeout_s=1.0,
        period_s=2.0,
    )  # fmt: skip
    yield PlayedDevice(polled("ipmi", section, shown.machine.clock), kill)


@contextmanager
def modbus(shown: Shown, _: Path) -> Iterator[PlayedDevice]:
    """An SDM630; its counter is kept in kWh, as a float of few digits."""
    registers = {52: ("f", shown.watts), 72: ("f", lambda: round(shown.joules() / 3.6e6, 2))}
    with ModbusPlayer(registers) as device:
        section = ModbusMeter(host="127.0.0.1", port=device.port, preset="sdm630", timeout_s=0.2)
        yield PlayedDevice(polled("modbus", section, shown.machine.clock), device.close)


@contextmanager
def csv(shown: Shown, folder: Path) -> Iterator[PlayedDevice]:
    """A log with a row a second."""
    log, clock = folder / "power.csv", shown.machine.clock
    log.write_text("timestamp,source,watts\n")

    def write() -> None:
        with log.open("a") as file:
            file.write(f"{clock.wall_s()},pdu,{round(shown.watts())}\n")

    yield PlayedDevice(CsvMeter(log, clock), clock.every(PERIOD_S, write))


@contextmanager
def rapl(shown: Shown, folder: Path) -> Iterator[PlayedDevice]:
    """A folder laid out like powercap, renewed every 20 ms; it is neither late nor averaged."""
    zone, clock = folder / "intel-rapl:0", shown.machine.clock
    zone.mkdir()
    wraps_uj = 65_532_610_987
    counter = (zone / "energy_uj").open("w")

    def write() -> None:
        counter.seek(0)
        counter.write(f"{round(shown.joules() * 1e6) % wraps_uj:011}\n")
        counter.flush()

    write()
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text(f"{wraps_uj}\n")
    end = clock.every(0.02, write)

    def kill() -> None:
        end()
        (zone / "energy_uj").unlink()

    with counter:
        yield PlayedDevice(find_rapl(folder, clock), kill)


READERS = {
    "csv file": csv,
    "rapl": rapl,
    "snmp v2c": snmp_v2c,
    "snmp v3": snmp_v3,
    "redfish Power": redfish_power,
    "redfish EnvironmentMetrics": redfish_metrics,
    "ipmi dcmi": ipmi,
    "modbus": modbus,
}
"""Name -> what plays it."""
EXACT_READERS = ("rapl",)
"""Neither late nor averaged."""


@dataclass(frozen=True)
class Recovered:
    """What a reader made of a minute whose energy is known.

    response: what the step test learned. killed: why the window in which the device was killed has
    no figure.
    """

    true_j: float
    energy_j: float | None
    error_j: float
    reason: str
    response: Response | None
    true_lag_s: float
    killed_j: float | None
    killed: str

    @property
    def area_error(self) -> float:
        return math.nan if self.energy_j is None else self.energy_j / self.true_j - 1

    @property
    def covered(self) -> bool:
        return self.energy_j is not None and abs(self.energy_j - self.true_j) <= self.error_j


def recover(name: str, folder: Path, seed: int = 0) -> Recovered:
    """Play one reader; its files go to ``folder``."""
    clock, random = SteppedClock(), np.random.default_rng(seed)
    machine = Machine(clock)
    # What is asked at whole seconds must not meet the load at whole seconds.
    clock.sleep(float(random.uniform(0, 1)))
    engine = PlayedEngine(machine, random, REQUEST_S, BUSY_W)
    exact = name in EXACT_READERS
    shown = Shown(machine, 0.0, 0.0) if exact else Shown(machine)
    with ExitStack() as stack:
        played = stack.enter_context(READERS[name](shown, folder))
        session = EnergySession([played.meter], max_gap_s=6.0, interval_s=0.5, clock=clock)
        stack.enter_context(session)
        session.learn(lambda: engine.generate(None))
        session.rest()
        start_s = session.now()
        while session.now() < start_s + METERED_S:
            engine.generate(None)
        end_s = session.now()
        session.rest()
        energy = session.energy(start_s, end_s)
        again_s = session.now()
        while session.now() < again_s + KILLED_S / 2:
            engine.generate(None)
        played.kill()
        while session.now() < again_s + KILLED_S:
            engine.generate(None)
        killed_s = session.now()
        session.rest()
        killed = session.energy(again_s, killed_s)
        learned = [r for r in session.responses.values() if r is not None]
    return Recovered(
        machine.mean_w(start_s, end_s) * (end_s - start_s),
        energy.energy_j,
        energy.error_j,
        energy.text,
        learned[0] if learned else None,
        shown.lag_s + shown.averaging_s / 2,
        killed.energy_j,
        f"{killed.reason}: {killed.text}",
    )


def rows(name: str, found: list[Recovered]) -> Iterator[dict[str, Any]]:
    """The rows of one reader, means over its plays; ``lo`` and ``hi`` hold all of them."""
    exact = name in EXACT_READERS
    about = {
        "meter": name,
        "lag_s": 0.0 if exact else LAG_S,
        "averaging_s": 0.0 if exact else AVERAGING_S,
        "period_s": 2.0 if name == "ipmi dcmi" else 0.5 if name == "rapl" else PERIOD_S,
    }

    def row(figure: str, true: float, values: list[float], covered: float) -> dict[str, Any]:
        figures = {"true": true, "value": np.mean(values), "lo": min(values), "hi": max(values)}
        rounded = {key: round(float(number), 5) for key, number in figures.items()}
        return {"name": figure, **about, **rounded, "covered": covered, "runs": len(found)}

    areas = [one.area_error for one in found]
    yield row("area_error", 0.0, areas, float(np.mean([one.covered for one in found])))
    learned = [(one.response, one.true_lag_s) for one in found if one.response is not None]
    if learned:
        shifts = [response.shift_s for response, _ in learned]
        held = [
            abs(response.shift_s - true) <= response.lag_error_s + response.averaging_error_s / 2
            for response, true in learned
        ]
        yield row("lag_found", learned[0][1], shifts, float(np.mean(held)))


def main() -> None:
    os.environ |= {
        "PLAYED_AUTH": SNMP_USER[1], "PLAYED_PRIVACY": SNMP_USER[2], "PLAYED_BMC": "bmc-password",
    }  # fmt: skip
    made = []
    for name in READERS:
        if name == "ipmi dcmi" and not shutil.which("ipmitool"):
            print("no ipmitool here: left out")
            continue
        found = []
        for seed in range(RUNS):
            with tempfile.TemporaryDirectory() as folder:
                found.append(recover(name, Path(folder), seed))
        made += list(rows(name, found))
        print(*map(json.dumps, made[-2:]), sep="\n", flush=True)
    write_rows(made)


if __name__ == "__main__":
    main()
