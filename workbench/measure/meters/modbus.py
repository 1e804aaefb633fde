"""Modbus TCP: panel and DIN-rail meters, from a map of registers."""

from __future__ import annotations

import logging
import struct
from typing import Any

from workbench.errors import reason_of
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.extra import library
from workbench.measure.meters.sample import Channel, FaultCode, MeterError, MeterFault, Sample
from workbench.measure.meters.units import TO_SI, declared_channel
from workbench.pilot.sections.meters import ModbusMeter, ModbusRegister
from workbench.wording.counts import number_of

FORMATS = {
    "uint16": "H", "int16": "h", "uint32": "I", "int32": "i", "uint64": "Q", "int64": "q",
    "float32": "f", "float64": "d",
}  # fmt: skip
FLOAT_STEP = 1e-3
"""Of a value in floating point, which says no step of its own."""
PRESETS: dict[str, tuple[ModbusRegister, ...]] = {
    # Eastron SDM630 Modbus protocol: total system power, total active energy.
    "sdm630": (
        ModbusRegister(address=52, unit="W"),
        ModbusRegister(address=72, unit="kWh", scale=1.0),
    ),
    # Schneider PM5000 register list: total active power, active energy delivered.
    "pm5000": (
        ModbusRegister(address=3059, table="holding", unit="kW"),
        ModbusRegister(address=3203, table="holding", type="int64", unit="Wh"),
    ),
}
ILLEGAL_ADDRESS = 2


class ModbusDevice:
    """Asks for each register of the map in turn, over one connection that is kept.

    Raises ConfigError without pymodbus.
    """

    reader = "modbus"

    def __init__(self, section: ModbusMeter, clock: Clock = SYSTEM_CLOCK) -> None:
        pymodbus = library("pymodbus.client", "measure_ab.meters.modbus")
        # It logs each failure to standard error; here a failure is counted, with its reason.
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
        self.name = section.name or section.host
        self.notes: list[str] = []
        self._section, self._clock = section, clock
        self._client = pymodbus.ModbusTcpClient(
            section.host, port=section.port, timeout=section.timeout_s, retries=0
        )
        self._asked = _asked(section, self.name)

    def ask(self) -> list[Sample | MeterFault]:
        if not self._client.connected and not self._client.connect():
            raise MeterError(f"nobody answers at {self._section.host}:{self._section.port}")
        return [self._value(channel, register) for channel, register in self._asked]

    def leave_out(self, channel: Channel) -> None:
        self._asked = [one for one in self._asked if one[0] != channel]

    def close(self) -> None:
        self._client.close()

    def _value(self, channel: Channel, register: ModbusRegister) -> Sample | MeterFault:
        code = FORMATS[register.type]
        count = struct.calcsize(f">{code}") // 2
        tables = {
            "input": self._client.read_input_registers,
            "holding": self._client.read_holding_registers,
        }
        before_s = self._clock.monotonic_s()
        try:
            answer = tables[register.table](
                register.address, count=count, device_id=self._section.unit_id
            )
        except Exception as error:
            # pymodbus raises errors of its own and those of sockets.
            self._client.close()
            late = "timeout" if "response" in str(error).lower() else "no_answer"
            raise MeterError(reason_of(error), late) from None  # type: ignore[arg-type]
        now_s = (before_s + self._clock.monotonic_s()) / 2
        where = f"{channel.place} {channel.quantity}: {register.table} register {register.address}"
        if answer.isError():
            refused: FaultCode = (
                "unknown_name"
                if getattr(answer, "exception_code", None) == ILLEGAL_ADDRESS
                else "no_answer"
            )
            return MeterFault(f"{where}: {answer}", refused, channel)
        if len(answer.registers) != count:
            text = f"{where}: {number_of(len(answer.registers), 'register')} for {count}"
            return MeterFault(text, "wrong_type", channel)
        number = _number(answer.registers, register, code)
        value = number * register.scale * TO_SI[register.unit]
        return Sample(channel, now_s, self._clock.wall_s(), value)


def _number(registers: list[int], register: ModbusRegister, code: str) -> float:
    words = registers if register.word_order == "big" else registers[::-1]
    return float(struct.unpack(f">{code}", struct.pack(f">{len(words)}H", *words))[0])


def _asked(section: ModbusMeter, name: str) -> list[tuple[Channel, ModbusRegister]]:
    preset = PRESETS[section.preset] if section.preset else ()
    asked: list[tuple[Channel, Any]] = []
    for register in (*preset, *section.registers):
        own = register.name or (
            "" if register in preset else f"{register.table} {register.address}"
        )
        step = register.scale * (FLOAT_STEP if register.type.startswith("float") else 1.0)
        scope = register.scope or section.covers
        channel = declared_channel(
            "modbus", section, f"{name} {own}".rstrip(), register.unit, step, scope
        )
        asked.append((channel, register))
    return asked
