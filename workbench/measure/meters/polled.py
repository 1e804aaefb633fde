"""Devices that are asked over a network: a thread for each, so that none holds up a session.

A :class:`AskedDevice` knows how to ask and takes as long as it takes, within its time-outs. Its
:class:`PolledMeter` asks it regularly, and hands what has come to whoever reads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from workbench.errors import reason_of
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.sample import Channel, MeterError, MeterFault, Sample
from workbench.measure.meters.values import ValueCheck

MOST_WAITING = 10_000
"""Samples that nobody reads yet; beyond it the oldest go."""
LASTING = ("unsupported", "unknown_name", "wrong_type")
"""A channel that answers so at the first time will always."""


class AskedDevice(Protocol):
    """Something that answers with samples. name: for a person, as in ``rack 7 pdu``."""

    reader: str
    name: str
    notes: list[str]

    def ask(self) -> list[Sample | MeterFault]:
        """What it shows now. Raises OSError where it does not answer; MeterError says why."""
        ...

    def leave_out(self, channel: Channel) -> None:
        """Do not ask for this one any more."""
        ...

    def close(self) -> None: ...


class PolledMeter:
    """A meter that asks ``device`` every ``period_s``, in a thread of its own.

    The first answer is waited for, so that a device that is not there is known at once.
    timeout_s: how long a device may take to be let go.

    Raises OSError where the device gives no sample.
    """

    def __init__(
        self,
        device: AskedDevice,
        period_s: float,
        timeout_s: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.device, self.reader = device, device.reader
        self._period_s, self._timeout_s, self._clock = period_s, timeout_s, clock
        self._check = ValueCheck()
        self._new: deque[Sample | MeterFault] = deque(maxlen=MOST_WAITING)
        self._failed: MeterError | None = None
        self._end: Callable[[], None] | None = None
        try:
            first = self._check(self._asked())
            samples = [one for one in first if isinstance(one, Sample)]
            faults = [one for one in first if isinstance(one, MeterFault)]
            if not samples:
                said = "; ".join(fault.text for fault in faults[:3])
                code = faults[0].code if faults else "no_answer"
                raise MeterError(f"{device.name}: {said or 'it gave no sample'}", code)
        except OSError:
            device.close()
            raise
        self.notes = list(device.notes)
        for fault in faults:
            if fault.channel is not None and fault.code in LASTING:
                device.leave_out(fault.channel)
                self.notes.append(f"{self.reader} {fault.text}, so it is left out")
        self._new += samples

    def read(self) -> list[Sample | MeterFault]:
        """What came since the last call; the first call starts the asking.

        Raises MeterError while the device does not answer.
        """
        if self._end is None:
            self._end = self._clock.every(self._period_s, self._poll)
        found = []
        while self._new:
            found.append(self._new.popleft())
        if not found and self._failed is not None:
            raise self._failed
        return found

    def close(self) -> None:
        """Takes ``timeout_s`` at most; a device that hangs longer is left to its thread."""
        if self._end is not None:
            ending = threading.Thread(target=self._end, name="meter", daemon=True)
            ending.start()
            ending.join(self._timeout_s)
            if ending.is_alive():
                return
        self.device.close()

    def _poll(self) -> None:
        try:
            self._new += self._check(self._asked())
            self._failed = None
        except MeterError as error:
            self._failed = error

    def _asked(self) -> list[Sample | MeterFault]:
        """Raises MeterError alone: whatever else a library raises must not end the asking."""
        try:
            return self.device.ask()
        except Exception as error:
            code = error.code if isinstance(error, MeterError) else "no_answer"
            raise MeterError(f"{self.device.name}: {reason_of(error)}", code) from None
