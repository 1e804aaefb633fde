"""The text that a loop of ``ipmitool dcmi power reading`` writes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workbench.measure.exports.log import ExportedSample
from workbench.measure.exports.reading import LEARNED_FROM, FormReading
from workbench.measure.exports.text import text_of

_DCMI_POWER = re.compile(r"Instantaneous power reading:\s*(\S+)\s*Watts?", re.I)
_DCMI_TIME = re.compile(r"IPMI timestamp:\s*(.+?)(?=\s{2,}Sampling|\s*$)", re.I)
_DCMI_STATE = re.compile(r"Power reading state is:\s*(\S+)", re.I)


def read_dcmi(reading: FormReading) -> Iterator[ExportedSample]:
    """A loop of ``ipmitool dcmi power reading``: the time is the line before a reading (``date``),
    which is this machine's, or the BMC's own, which often stands at 1970."""
    scope = reading.scope("node", True)
    lines = text_of(reading.path).splitlines()
    before: str | None = None
    block: dict[str, str] = {}
    begun = 0

    def ended(line: int) -> Iterator[ExportedSample]:
        if "power" not in block:
            return
        own = before if before is not None else block.get("time")
        try:
            if block.get("state", "activated").lower() != "activated":
                raise ValueError(f"power reading is {block['state']!r}")
            if own is None:
                raise ValueError("a reading without a time")
            watts = float(block["power"])
            if watts == 0:
                raise ValueError("0 W, which is no measurement")
            value = reading.si(watts, "W")
            unix_s = reading.times.unix_s(own)
        except ValueError as error:
            reading.fault(line, error)
            return
        yield ExportedSample(
            "bmc", unix_s, value, reading.channel("bmc", "power", scope, resolution=1.0)
        )

    reading.times.learn([line.strip() for line in lines[:LEARNED_FROM]])
    pending: str | None = None
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if found := _DCMI_POWER.search(text):
            yield from ended(begun)
            before, pending, begun = pending, None, number
            block = {"power": found[1]}
        elif ":" in text and re.match(r"(Min|Max|Average|IPMI|Sampling|Power)", text):
            if found := _DCMI_TIME.search(text):
                block["time"] = found[1]
            if found := _DCMI_STATE.search(text):
                block["state"] = found[1].rstrip(".")
        else:
            pending = text
    yield from ended(begun)
    if before is None and block:
        reading.notes.append("times are the BMC's own clock")
