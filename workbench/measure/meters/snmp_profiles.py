"""OIDs of PDUs and UPSs, as data: what to ask, and in which unit.

Sources: the vendors' MIBs (PowerNet-MIB, PDU2-MIB, Sentry4-MIB, EATON-EPDU-MIB, CPS-MIB) and RFC
1628. A value of -1 or 0 stands for "not supported" on many of them and is taken for no sample.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """oid: ``{}`` is where the index goes. The value times ``scale`` is in ``unit``.

    digits: an OID that holds the number of decimal digits by which the value is to be divided.
    """

    oid: str
    unit: str
    scale: float = 1.0
    digits: str | None = None


@dataclass(frozen=True)
class Profile:
    """index: of the first one; None where there is none to take."""

    index: str | None
    columns: tuple[Column, ...]


_APC = "1.3.6.1.4.1.318.1.1.26"
_RARITAN = "1.3.6.1.4.1.13742.6"
_EATON = "1.3.6.1.4.1.534.6.6.7"

PROFILES: dict[str, Profile] = {
    # rPDU2DeviceStatusPower in hundredths of kW, ...Energy in tenths of kWh.
    "apc": Profile(
        "1",
        (Column(f"{_APC}.4.3.1.5.{{}}", "kW", 0.01), Column(f"{_APC}.4.3.1.9.{{}}", "kWh", 0.1)),
    ),
    # rPDU2OutletMeteredStatusPower and ...Energy.
    "apc-outlet": Profile(
        None,
        (Column(f"{_APC}.9.4.3.1.7.{{}}", "W"), Column(f"{_APC}.9.4.3.1.11.{{}}", "kWh", 0.1)),
    ),
    # measurementsInletSensorValue of active power and active energy, and their decimal digits.
    "raritan": Profile(
        "1.1",
        (
            Column(f"{_RARITAN}.5.2.3.1.4.{{}}.5", "W", digits=f"{_RARITAN}.3.3.4.1.7.{{}}.5"),
            Column(f"{_RARITAN}.5.2.3.1.4.{{}}.8", "Wh", digits=f"{_RARITAN}.3.3.4.1.7.{{}}.8"),
        ),
    ),
    "raritan-outlet": Profile(
        None,
        (
            Column(f"{_RARITAN}.5.4.3.1.4.{{}}.5", "W", digits=f"{_RARITAN}.3.5.4.1.7.{{}}.5"),
            Column(f"{_RARITAN}.5.4.3.1.4.{{}}.8", "Wh", digits=f"{_RARITAN}.3.5.4.1.7.{{}}.8"),
        ),
    ),
    # st4InputCordActivePower and ...Energy.
    "servertech": Profile(
        "1.1",
        (
            Column("1.3.6.1.4.1.1718.4.1.3.3.1.3.{}", "W"),
            Column("1.3.6.1.4.1.1718.4.1.3.3.1.10.{}", "kWh", 0.1),
        ),
    ),
    # inputTotalWatts and inputTotalWh; the first unit of a chain is 0.
    "eaton": Profile(
        "0.1",
        (Column(f"{_EATON}.3.5.1.4.{{}}", "W"), Column(f"{_EATON}.3.5.1.5.{{}}", "Wh")),
    ),
    "eaton-outlet": Profile(None, (Column(f"{_EATON}.6.5.1.3.{{}}", "W"),)),
    # ePDULoadStatusActivePower.
    "cyberpower": Profile("1", (Column("1.3.6.1.4.1.3808.1.1.3.2.3.1.1.7.{}", "W"),)),
    # upsInputTruePower and upsOutputPower of a line.
    "ups-input": Profile("1", (Column("1.3.6.1.2.1.33.1.3.3.1.5.{}", "W"),)),
    "ups-output": Profile("1", (Column("1.3.6.1.2.1.33.1.4.4.1.4.{}", "W"),)),
}
