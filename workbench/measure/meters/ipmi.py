"""IPMI DCMI: the power that a server's BMC knows, through ``ipmitool``: whole watts, and slow.

Instantaneous readings alone: the averages that come with them are of a period that BMCs choose.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time

from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.sample import Channel, FaultCode, MeterError, MeterFault, Sample
from workbench.measure.meters.secret import from_environment, hidden
from workbench.measure.meters.units import declared_channel
from workbench.pilot.sections.meters import IpmiMeter

INSTANTANEOUS = re.compile(r"Instantaneous power reading:\s*(\S+)\s*Watts", re.I)
STATE = re.compile(r"Power reading state is:\s*(\S+)", re.I)
DENIED = re.compile(
    r"unable to establish .* session|password|privilege|RAKP|hmac|invalid user|unauthorized", re.I
)
RETRY_S = 1.0
"""Between the tries of ``ipmitool -N``."""
PASSWORD_VARIABLE = "IPMI_PASSWORD"
"""Where ``ipmitool -E`` looks, so that no list of processes shows it."""


class IpmiDevice:
    """Starts ``ipmitool`` for each question.

    Raises MeterError where it is not installed or the password is not in the environment.
    """

    reader = "ipmi"

    def __init__(self, section: IpmiMeter, clock: Clock = SYSTEM_CLOCK) -> None:
        self.name = section.name or section.host or "this machine's BMC"
        self.notes: list[str] = []
        self._section, self._clock = section, clock
        tool = shutil.which("ipmitool")
        if tool is None:
            raise MeterError("ipmitool is not installed: apt-get install ipmitool")
        self._command = [tool, *_remote(section), "dcmi", "power", "reading"]
        self._password = from_environment(section.password_env) if section.password_env else None
        self._channel = declared_channel("ipmi", section, self.name, "W", 1.0, section.covers)

    def ask(self) -> list[Sample | MeterFault]:
        before_s = self._clock.monotonic_s()
        text = self._output()
        now_s = (before_s + self._clock.monotonic_s()) / 2
        state = STATE.search(text)
        if state and state[1].lower() not in ("activated", "active"):
            return [MeterFault("the BMC measures no power", "unsupported", self._channel)]
        shown = INSTANTANEOUS.search(text)
        if shown is None:
            return [MeterFault("ipmitool shows no power reading", "wrong_type", self._channel)]
        try:
            watts = float(shown[1])
        except ValueError:
            said = hidden(repr(shown[1][:40]), self._password)
            return [MeterFault(f"{said} is no number", "wrong_type", self._channel)]
        return [Sample(self._channel, now_s, self._clock.wall_s(), watts)]

    def leave_out(self, channel: Channel) -> None:
        """It has one alone."""

    def close(self) -> None:
        """Nothing is kept open."""

    def _output(self) -> str:
        environment, began_s = dict(os.environ), time.monotonic()
        if self._password is not None:
            environment[PASSWORD_VARIABLE] = self._password
        try:
            done = subprocess.run(
                self._command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._section.timeout_s,
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise MeterError(f"no answer within {self._section.timeout_s:g} s", "timeout") from None
        if done.returncode:
            said = hidden(" ".join((done.stderr or done.stdout).split())[:200], self._password)
            # A BMC that refuses says so at once; ipmitool says the same of one that is not there.
            refused = DENIED.search(said) and time.monotonic() - began_s < RETRY_S
            code: FaultCode = "denied" if refused else "no_answer"
            raise MeterError(f"ipmitool: {said or f'exit code {done.returncode}'}", code)
        return done.stdout


def _remote(section: IpmiMeter) -> list[str]:
    if section.host is None:
        return []
    return [
        "-I", section.interface, "-H", section.host, "-p", str(section.port),
        "-U", section.user or "", "-E", "-N", f"{RETRY_S:.0f}", "-R", "1",
    ]  # fmt: skip
