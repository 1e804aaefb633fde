"""``measure_ab.meters``: where energy comes from, and how each meter is reached.

Passwords stand in environment variables, whose names are given here; the passwords themselves reach
no record, no hash and no text.
"""

from __future__ import annotations

import zoneinfo
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from workbench.pilot.sections.base import Count, Positive, Section, input_path, is_base_url

Scope = Literal["gpu", "cpu", "node", "rack", "it", "facility", "cooling"]
"""What a figure covers: boards, processors with their memory, the whole machine at its inlet; then
what holds other machines as well."""
PowerUnit = Literal["W", "kW", "mW"]
EnergyUnit = Literal["J", "kJ", "mJ", "Wh", "kWh"]
SNMP_SCOPES: dict[str, Scope] = {
    "apc": "rack",
    "apc-outlet": "node",
    "raritan": "rack",
    "raritan-outlet": "node",
    "servertech": "rack",
    "eaton": "rack",
    "eaton-outlet": "node",
    "cyberpower": "rack",
    "ups-input": "it",
    "ups-output": "it",
}
"""What a profile's values hold: all of a PDU feeds a rack, an outlet of it a machine."""
PROMETHEUS_SCOPES: dict[str, Scope] = {
    "DCGM_FI_DEV_POWER_USAGE": "gpu",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": "gpu",
    "node_rapl_package_joules_total": "cpu",
    "node_rapl_dram_joules_total": "cpu",
    "kepler_node_cpu_joules_total": "cpu",
    "ipmi_dcmi_power_consumption_watts": "node",
}
ENERGY_UNITS = ("J", "kJ", "mJ", "Wh", "kWh")
Port = Annotated[int, Field(ge=1, le=65_535)]


class NetworkMeter(Section):
    """What every meter that is asked over a network has."""

    name: str | None = Field(
        None, min_length=1, max_length=80, description="of its figures; null takes its address"
    )
    scope: Scope | None = Field(
        None,
        description="what it holds: boards, processors, or the machine at its inlet; what holds "
        "other machines too (rack, it, facility, cooling) is a cross-check and no figure; null "
        "takes the profile's, which is rack for all of a PDU",
    )
    contains: list[str] = Field(
        [], description="names of other meters' places that it holds as well"
    )
    period_s: Positive = Field(1.0, description="it is asked this often, s")
    timeout_s: Positive = Field(2.0, description="an answer that takes longer is none, s")
    lag_s: float | None = Field(
        None, ge=0, description="how late its values are, s; null has the step test find it"
    )
    averaging_s: float | None = Field(
        None, ge=0, description="its values are means over this, s; null has the step test find it"
    )

    @property
    def covers(self) -> Scope:
        """What its values hold."""
        return self.scope or self.usual_scope

    @property
    def usual_scope(self) -> Scope:
        return "node"


class MeterValue(Section):
    """One value of a device, as the user describes it."""

    name: str | None = Field(None, min_length=1, description="of this value, beside the device's")
    unit: PowerUnit | EnergyUnit = Field(
        description="W, kW, mW: a power; J, mJ, Wh, ...: a counter"
    )
    scale: Positive = Field(1.0, description="times the value as it comes gives it in the unit")
    scope: Scope | None = Field(None, description="what it holds; null takes the device's")

    @property
    def quantity(self) -> Literal["power", "energy"]:
        return "energy" if self.unit in ENERGY_UNITS else "power"


class SnmpOid(MeterValue):
    """One OID of an SNMP agent."""

    oid: str = Field(pattern=r"^\.?\d+(\.\d+)+$", description="in numbers, with its index")
    bits: Literal[32, 64] | None = Field(
        None, description="a counter of so many bits starts again from 0; null: it does not"
    )


class SnmpMeter(NetworkMeter):
    """A PDU or UPS over SNMP v2c, or v3 where a user is given."""

    host: str = Field(min_length=1, description="address of the agent")
    port: Port = Field(161, description="UDP port of the agent")
    profile: str | None = Field(
        None,
        description="whose OIDs to ask for, one of " + ", ".join(SNMP_SCOPES) + "; null asks for "
        "oids alone",
    )
    index: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+)*$",
        description="which unit, inlet, cord, outlet or line, as the profile counts: 3 or 1.3; "
        "null takes the first; outlets have none to take",
    )
    oids: list[SnmpOid] = Field([], description="further OIDs, or all of them without a profile")
    community_env: str | None = Field(
        None,
        min_length=1,
        description="environment variable with the community of v2c; null asks as public",
    )
    user: str | None = Field(None, min_length=1, description="of v3; null is v2c")
    auth: Literal["md5", "sha", "sha224", "sha256", "sha384", "sha512"] = Field(
        "sha256", description="v3's authentication, where auth_env is given"
    )
    auth_env: str | None = Field(
        None, min_length=1, description="environment variable with v3's authentication password"
    )
    privacy: Literal["des", "aes128", "aes192", "aes256"] = Field(
        "aes128", description="v3's encryption, where privacy_env is given"
    )
    privacy_env: str | None = Field(
        None, min_length=1, description="environment variable with v3's encryption password"
    )

    @property
    def usual_scope(self) -> Scope:
        return SNMP_SCOPES[self.profile] if self.profile else "node"

    @model_validator(mode="after")
    def something_is_asked(self) -> SnmpMeter:
        if self.profile is None and not self.oids:
            raise ValueError("give a profile, or oids with their units")
        if self.profile and self.profile not in SNMP_SCOPES:
            raise ValueError(f"no profile {self.profile}; give one of {', '.join(SNMP_SCOPES)}")
        if self.profile and self.profile.endswith("-outlet") and self.index is None:
            raise ValueError(f"the profile {self.profile} needs index: which outlet")
        if self.index is not None and self.profile is None:
            raise ValueError("index belongs to a profile; oids have theirs at their ends")
        if self.user is None and (self.auth_env or self.privacy_env):
            raise ValueError("auth_env and privacy_env belong to v3, which needs user")
        if self.user is not None and self.community_env:
            raise ValueError("give community_env for v2c or user for v3, not both")
        if self.privacy_env and not self.auth_env:
            raise ValueError("v3 has no encryption without authentication: give auth_env")
        return self


class HttpMeter(NetworkMeter):
    """What is asked over HTTP."""

    url: str = Field(description="base URL, such as https://10.0.0.9")
    user: str | None = Field(None, min_length=1, description="of basic authentication")
    password_env: str | None = Field(
        None, min_length=1, description="environment variable with the user's password"
    )
    verify_tls: bool = Field(
        True,
        description="false takes any certificate, as BMCs have their own; whoever answers gets the "
        "password",
    )

    @field_validator("url")
    @classmethod
    def base_url(cls, url: str) -> str:
        # The address is not repeated: what is wrong with it may be a password.
        if not is_base_url(url):
            raise ValueError(
                "no base URL; give http or https, host and port, such as https://10.0.0.9; the "
                "user stands in user and the password in the variable of password_env"
            )
        return url

    @model_validator(mode="after")
    def user_and_password(self) -> HttpMeter:
        if (self.user is None) != (self.password_env is None):
            raise ValueError("user and password_env belong together")
        return self


class RedfishMeter(HttpMeter):
    """A server's BMC, or a rack's PDU, over Redfish."""

    chassis: str | None = Field(
        None, min_length=1, description="id of the chassis; null takes the only one"
    )
    rack_pdu: str | None = Field(
        None, min_length=1, description="id of a PDU below PowerEquipment/RackPDUs, instead"
    )

    @property
    def usual_scope(self) -> Scope:
        return "rack" if self.rack_pdu else "node"

    @model_validator(mode="after")
    def one_of_them(self) -> RedfishMeter:
        if self.chassis and self.rack_pdu:
            raise ValueError("give chassis or rack_pdu, not both; two meters are two entries")
        return self


class IpmiMeter(NetworkMeter):
    """A server's BMC over IPMI DCMI, asked with ``ipmitool``: whole watts, and slow."""

    host: str | None = Field(
        None, min_length=1, description="the BMC's address; null asks this machine's own (root)"
    )
    port: Port = Field(623, description="UDP port of the BMC")
    user: str | None = Field(None, min_length=1, description="of the BMC; null for this machine's")
    password_env: str | None = Field(
        None, min_length=1, description="environment variable with the user's password"
    )
    interface: Literal["lanplus", "lan"] = Field(
        "lanplus", description="lanplus is IPMI 2.0; lan is the old one, without encryption"
    )
    period_s: Positive = Field(2.0, description="it is asked this often, s")
    timeout_s: Positive = Field(5.0, description="an answer that takes longer is none, s")

    @model_validator(mode="after")
    def remote_has_a_user(self) -> IpmiMeter:
        if self.host is not None and (self.user is None or self.password_env is None):
            raise ValueError("a BMC over the network needs user and password_env")
        return self


class ModbusRegister(MeterValue):
    """One value in a Modbus device's registers."""

    address: int = Field(ge=0, le=65_535, description="of its first register, counted from 0")
    table: Literal["input", "holding"] = Field("input", description="of the device's registers")
    type: Literal["uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"] = (
        Field("float32", description="of the value, which takes one, two or four registers")
    )
    word_order: Literal["big", "little"] = Field(
        "big", description="of values of several registers: the high word first, or the low one"
    )


class ModbusMeter(NetworkMeter):
    """A panel or DIN-rail meter over Modbus TCP."""

    host: str = Field(min_length=1, description="address of the device or its gateway")
    port: Port = Field(502, description="TCP port of the device or its gateway")
    unit_id: int = Field(1, ge=0, le=255, description="of the device behind a gateway")
    preset: Literal["sdm630", "pm5000"] | None = Field(
        None,
        description="registers of an Eastron SDM630, or of a Schneider PM5000 (not tried on one)",
    )
    registers: list[ModbusRegister] = Field([], description="further ones, or all without a preset")

    @model_validator(mode="after")
    def something_is_asked(self) -> ModbusMeter:
        if self.preset is None and not self.registers:
            raise ValueError("give a preset, or registers with their units")
        return self


class PrometheusMeter(HttpMeter):
    """Series that a Prometheus server has, at the times at which it scraped them."""

    token_env: str | None = Field(
        None, min_length=1, description="environment variable with a bearer token"
    )
    metric: str | None = Field(
        None,
        description="a known one, of which unit and scope are known: "
        + ", ".join(PROMETHEUS_SCOPES),
    )
    match: dict[str, str] = Field(
        {}, description="labels that the metric's series must have: {instance: gpu7:9400}"
    )
    query: str | None = Field(
        None, min_length=1, description="PromQL of your own, instead of metric; with unit"
    )
    unit: PowerUnit | EnergyUnit | None = Field(None, description="of the query's values")
    scale: Positive = Field(1.0, description="times a value of the query gives it in the unit")
    most_series: Count = Field(64, description="a query that gives more is refused")

    @property
    def usual_scope(self) -> Scope:
        return PROMETHEUS_SCOPES[self.metric] if self.metric else "node"

    @model_validator(mode="after")
    def metric_or_query(self) -> PrometheusMeter:
        if (self.metric is None) == (self.query is None):
            raise ValueError("give metric, a known one, or query with its unit")
        if self.metric and self.metric not in PROMETHEUS_SCOPES:
            raise ValueError(
                f"{self.metric} is none of {', '.join(PROMETHEUS_SCOPES)}: give it as query, with "
                "its unit"
            )
        if self.query is not None and self.unit is None:
            raise ValueError("a query needs unit: W, kW, mW, J, kJ, mJ, Wh or kWh")
        if self.metric is not None and self.unit is not None:
            raise ValueError(f"the unit of {self.metric} is known; unit belongs to query")
        if self.query is not None and self.match:
            raise ValueError("match belongs to metric; write the labels into the query")
        if self.token_env and self.user:
            raise ValueError("give token_env or user, not both")
        return self


Reader = Literal[
    "nvml", "rapl", "csv", "snmp", "redfish", "ipmi", "modbus", "prometheus", "recording"
]
NETWORK: tuple[Reader, ...] = ("snmp", "redfish", "ipmi", "modbus", "prometheus")


class Meters(Section):
    """Where energy comes from. ``auto`` uses every counter found, and all meters given here, and
    says why others are not."""

    sources: list[Literal["auto"] | Reader] = Field(
        ["auto"], description="meters to use; an empty list meters nothing"
    )
    csv: input_path(live=True) | None = Field(  # type: ignore[valid-type]
        None,
        description="power log that grows while the pilot runs, with columns timestamp (Unix "
        "seconds, or date and time with offset), source and watts; its sources are summed",
    )
    csv_unit: Literal["W", "kW"] = Field("W", description="of the log's column watts")
    csv_time_zone: str | None = Field(
        None, description="of the log's times without an offset, such as Europe/Berlin"
    )
    csv_scope: Scope = Field(
        "node",
        description="what the log's sources hold together: boards, processors, or the machine at "
        "its inlet; what holds other machines too is a cross-check and no figure",
    )
    recording: input_path(live=True) | None = Field(  # type: ignore[valid-type]
        None,
        description="what workbench meter record is writing meanwhile, power.parquet.parts: its "
        "meters, which only root may be able to read, beside those that are read here",
    )
    snmp: list[SnmpMeter] = Field([], description="PDUs and UPSs over SNMP v2c or v3")
    redfish: list[RedfishMeter] = Field([], description="BMCs and PDUs over Redfish")
    ipmi: list[IpmiMeter] = Field([], description="BMCs over IPMI DCMI, through ipmitool")
    modbus: list[ModbusMeter] = Field([], description="panel meters over Modbus TCP")
    prometheus: list[PrometheusMeter] = Field([], description="series of a Prometheus server")
    max_gap_s: Positive = Field(3.0, description="a longer gap between samples gives no figure")
    idle_s: Positive = Field(3.0, description="idle measured before and after the session, s")
    turn_s: Positive | None = Field(
        None,
        description="turns of the fixed shapes, and the rests before and after all work, last so "
        "long at least, s, for a power log that is attached afterwards (workbench meter import): "
        "22 for a row a second, and ten times its lag and averaging; null takes what the meters "
        "here need",
    )

    def wants(self, reader: Reader) -> bool:
        """``auto`` wants every counter of this machine, and the other readers that have a meter."""
        if reader in self.sources:
            return True
        return "auto" in self.sources and (reader not in NETWORK or bool(getattr(self, reader)))

    @model_validator(mode="after")
    def meters_are_given(self) -> Meters:
        if "csv" in self.sources and self.csv is None:
            raise ValueError("the source csv needs the path of the power log in csv")
        if "recording" in self.sources and self.recording is None:
            raise ValueError("the source recording needs the path of one in recording")
        for reader in NETWORK:
            if reader in self.sources and not getattr(self, reader):
                raise ValueError(f"the source {reader} needs a meter in {reader}")
        return self

    @field_validator("csv_time_zone")
    @classmethod
    def known_zone(cls, name: str | None) -> str | None:
        if name is not None and name not in zoneinfo.available_timezones():
            raise ValueError(f"no time zone {name!r}; give one such as Europe/Berlin or UTC")
        return name
