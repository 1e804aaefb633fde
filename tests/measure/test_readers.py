"""The readers of meters over a network, each against a device that plays its meter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from ruamel.yaml import YAML

from workbench.errors import ConfigError
from workbench.measure.meters import EnergySession, find_meters
from workbench.measure.meters.basis import bases
from workbench.measure.meters.find import DEVICES
from workbench.measure.meters.ipmi import IpmiDevice
from workbench.measure.meters.modbus import PRESETS
from workbench.measure.meters.polled import PolledMeter
from workbench.measure.meters.prometheus import KNOWN
from workbench.measure.meters.sample import Channel, FaultCode, MeterError, MeterFault, Sample
from workbench.measure.meters.snmp_message import GetRequest, answer_of
from workbench.measure.meters.snmp_profiles import PROFILES
from workbench.measure.meters.values import ValueCheck
from workbench.measure.played_meters import EXACT_READERS, READERS, SNMP_USER, recover
from workbench.measure.simulators.json_service import JsonService, redfish
from workbench.measure.simulators.modbus_device import ModbusPlayer
from workbench.measure.simulators.nvml_library import build_nvml, compiler_here
from workbench.measure.simulators.prometheus_server import PrometheusServer, prometheus_here
from workbench.measure.simulators.snmp_agent import SnmpAgent
from workbench.pilot.sections.meters import (
    PROMETHEUS_SCOPES,
    SNMP_SCOPES,
    IpmiMeter,
    Meters,
    ModbusMeter,
    ModbusRegister,
    PrometheusMeter,
    RedfishMeter,
    SnmpMeter,
    SnmpOid,
)

POWER, ENERGY = "1.3.6.1.4.1.318.1.1.26.4.3.1.5.1", "1.3.6.1.4.1.318.1.1.26.4.3.1.9.1"
SLOW = ("snmp v2c", "snmp v3", "ipmi dcmi")
"""These wait for time-outs, or start a program for each question."""


@pytest.fixture(autouse=True)
def passwords(monkeypatch):
    monkeypatch.setenv("PLAYED_AUTH", SNMP_USER[1])
    monkeypatch.setenv("PLAYED_PRIVACY", SNMP_USER[2])
    monkeypatch.setenv("PLAYED_BMC", "bmc-password")
    monkeypatch.setenv("WRONG", "not-the-password")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in READERS],
)
def test_each_reader_recovers_a_known_power_and_its_lag_and_nothing_once_killed(tmp_path, name):
    if name == "ipmi dcmi":
        pytest.importorskip("pyghmi")
        if not any(os.access(f"{p}/ipmitool", os.X_OK) for p in os.environ["PATH"].split(":")):
            pytest.skip("no ipmitool here")
    found = recover(name, tmp_path)
    assert found.covered, found
    assert abs(found.area_error) < 0.005
    assert found.error_j < 0.03 * found.true_j
    if name in EXACT_READERS:
        assert found.response is None
    else:
        learned = found.response
        off_s = learned.lag_error_s + learned.averaging_error_s / 2
        assert abs(learned.shift_s - found.true_lag_s) <= max(off_s, 0.02)
    assert found.killed_j is None
    assert found.killed.startswith("not_bracketed: ")
    assert len(found.killed) < 700 and "Traceback" not in found.killed


def find(**sections) -> tuple[list, list[str]]:
    """(Meters that answer, reasons of the others) of these sections alone."""
    found, missing = find_meters(Meters(sources=list(sections), **sections))
    return found, [one.reason for one in missing]


def ask(device) -> list:
    try:
        return ValueCheck()(device.ask())
    finally:
        device.close()


def agent(oids: dict, **more) -> SnmpAgent:
    return SnmpAgent({oid: (lambda v=value: v) for oid, value in oids.items()}, **more)


def test_a_pdu_over_snmp_tells_its_power_and_what_it_does_not_support(monkeypatch):
    """-1 is seen on a real AP7902B, which has no counter."""
    monkeypatch.setenv("COMMUNITY", "of-the-rack")
    with agent({POWER: 41, ENERGY: -1}, community="of-the-rack") as pdu:
        section = SnmpMeter(
            host="127.0.0.1", port=pdu.port, profile="apc", community_env="COMMUNITY"
        )
        found, missing = find(snmp=[section])
        assert missing == []
        (meter,) = found
        (sample,) = meter.read()
        assert (sample.value, sample.channel.unit, sample.channel.scope) == (410.0, "W", "rack")
        assert sample.channel.resolution == 10.0 and sample.channel.period_s == 1.0
        assert "energy: -1 J stands for: not supported, so it is left out" in meter.notes[0]
        meter.close()


def test_snmp_v3_reads_with_the_right_passwords_and_names_what_is_wrong_with_others():
    with agent({POWER: 41, ENERGY: 77}, v3=SNMP_USER) as pdu:
        right = {
            "host": "127.0.0.1", "port": pdu.port, "profile": "apc", "user": "monitor",
            "auth_env": "PLAYED_AUTH", "privacy_env": "PLAYED_PRIVACY", "timeout_s": 2.0,
        }  # fmt: skip
        wrong = [
            right | {"auth_env": "WRONG"},
            right | {"privacy_env": "WRONG"},
            right | {"user": "nobody"},
            right | {"auth_env": "NOT_SET"},
        ]
        found, reasons = find(snmp=[SnmpMeter(**one) for one in (right, *wrong)])
        assert [s.value for s in found[0].read()] == [410.0, pytest.approx(7.7 * 3.6e6)]
        found[0].close()
    assert len(reasons) == 4
    assert all("127.0.0.1" in r or "NOT_SET" in r for r in reasons)
    assert [r.split(":")[0] for r in reasons] == ["denied"] * 4
    assert "digest" in reasons[0] and "user" in reasons[2].lower() and "NOT_SET" in reasons[3]
    assert not any(secret in r for r in reasons for secret in (*SNMP_USER[1:], "not-the-password"))


def test_snmp_s_failures_have_their_codes_and_cost_the_other_values_nothing():
    """Of one agent: an unknown OID, a text, a number as text, a number."""
    base = "1.3.6.1.4.1.99999.1"
    with agent({f"{base}.2": "on", f"{base}.3": "300.5", f"{base}.4": 7}) as other:
        oids = [SnmpOid(oid=f"{base}.{i}", unit="W", name=f"v{i}") for i in range(1, 5)]
        section = SnmpMeter(host="127.0.0.1", port=other.port, oids=oids, name="pdu")
        found = ask(DEVICES["snmp"](section))
    assert [getattr(one, "code", None) for one in found] == [
        "unknown_name",
        "wrong_type",
        None,
        None,
    ]
    assert [s.value for s in found if isinstance(s, Sample)] == [300.5, 7.0]
    assert found[1].text == f"pdu v2 power: {base}.2: 'on' is no number"


def test_an_answer_of_v2c_is_read_as_pysnmp_writes_it_and_anything_else_is_none():
    v2c = pytest.importorskip("pysnmp.proto.api.v2c")
    encode = pytest.importorskip("pyasn1.codec.ber.encoder").encode
    shown = {
        f"{POWER}.{2**32 - 1}": (v2c.Counter64(2**64 - 1), 2**64 - 1),
        "1.3.6.1.2": (v2c.Integer(-1), -1),
        "2.999.3": (v2c.Gauge32(2**31), 2**31),
        "1.3.6.1.4": (v2c.OctetString("300.5" * 60), "300.5" * 60),
        "1.3.6.1.5": (v2c.NoSuchInstance(), None),
    }
    response = v2c.GetResponsePDU()
    v2c.apiPDU.set_defaults(response)
    v2c.apiPDU.set_request_id(response, 2**31 - 1)
    pairs = [(v2c.ObjectIdentifier(oid), value) for oid, (value, _) in shown.items()]
    v2c.apiPDU.set_varbinds(response, pairs)
    message = v2c.Message()
    v2c.apiMessage.set_defaults(message)
    v2c.apiMessage.set_pdu(message, response)
    whole = encode(message)
    answer = answer_of(whole)
    assert (answer.number, answer.status) == (2**31 - 1, "noError")
    assert answer.values == {oid: value for oid, (_, value) in shown.items()}
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            answer_of(whole[:length])
    with pytest.raises(ValueError):
        answer_of(GetRequest("public", [POWER]).numbered(1))


def test_a_wrong_community_is_a_time_out_that_says_what_may_be_wrong(monkeypatch):
    monkeypatch.setenv("COMMUNITY", "wrong")  # a word of the sentence, which stays
    with agent({POWER: 41}, community="of-the-rack") as pdu:
        section = SnmpMeter(
            host="127.0.0.1", port=pdu.port, profile="apc", community_env="COMMUNITY",
            timeout_s=0.2, name="rack 7",
        )  # fmt: skip
        found, (reason,) = find(snmp=[section])
    assert found == []
    text = "timeout: rack 7: no answer within 0.2 s: the host or the community may be wrong"
    assert reason.startswith(text)


def test_a_session_waits_for_no_device_that_hangs(monkeypatch):
    """It answers once and then takes longer than anybody waits: reading takes no time, closing the
    time-out at most, and the window has no number."""

    class Hangs:
        reader, name, notes = "redfish", "bmc", []
        asked = 0

        def ask(self) -> list[Sample | MeterFault]:
            self.asked += 1
            if self.asked > 1:
                time.sleep(30.0)
            channel = Channel("redfish", "bmc", "node", "power")
            return [Sample(channel, time.monotonic(), time.time(), 100.0)]

        def leave_out(self, channel: Channel) -> None: ...

        def close(self) -> None: ...

    meter = PolledMeter(Hangs(), period_s=0.01, timeout_s=0.2)
    began_s = time.monotonic()
    with EnergySession([meter], interval_s=0.01) as session:
        start_s = session.now()
        time.sleep(0.2)
        energy = session.energy(start_s, session.now())
    assert time.monotonic() - began_s < 5.0
    assert (energy.energy_j, energy.reason) == (None, "not_bracketed")


def test_a_device_that_comes_back_leaves_a_gap_that_is_no_zero(clock):
    class Goes:
        reader, name, notes = "snmp", "pdu", []
        channel = Channel("snmp", "pdu", "node", "power", period_s=1.0, lag_s=0.0, averaging_s=0.0)

        def ask(self) -> list[Sample | MeterFault]:
            if 20 < clock.now_s < 30:
                raise MeterError("no answer within 2 s", "timeout")
            return [Sample(self.channel, clock.monotonic_s(), clock.wall_s(), 100.0)]

        def leave_out(self, channel: Channel) -> None: ...

        def close(self) -> None: ...

    with EnergySession([PolledMeter(Goes(), 1.0, 1.0, clock)], clock=clock) as session:
        clock.sleep(60.0)
        assert session.energy(5.0, 18.0).energy_j == pytest.approx(1300.0)
        gap = session.energy(5.0, 40.0)
        assert session.energy(35.0, 55.0).energy_j == pytest.approx(2000.0)
    assert (gap.energy_j, gap.reason) == (None, "gap")
    assert "snmp: timeout: pdu: no answer within 2 s" in gap.text and "times)" in gap.text


def test_redfish_is_asked_for_what_there_is_and_says_what_there_is_not():
    with (
        JsonService(redfish(lambda: 412.0)) as old,
        JsonService(redfish(lambda: 412.5, lambda: 10.5), login=("root", "bmc-password")) as new,
        JsonService(redfish(lambda: None)) as mute,
    ):
        login = {"user": "root", "password_env": "PLAYED_BMC"}
        (sample,) = ask(DEVICES["redfish"](RedfishMeter(url=old.url)))
        assert sample.value == 412.0 and sample.channel.scope == "node"
        power, energy = ask(DEVICES["redfish"](RedfishMeter(url=new.url, **login)))
        assert (power.value, energy.value) == (412.5, 10.5 * 3.6e6)
        found, reasons = find(
            redfish=[
                RedfishMeter(url=new.url, user="root", password_env="WRONG"),
                RedfishMeter(url=new.url, chassis="9", **login),
                RedfishMeter(url=mute.url),
                RedfishMeter(url="http://127.0.0.1:1"),
            ]
        )
    assert found == []
    assert [r.split(":")[0] for r in reasons] == [
        "denied", "unknown_name", "unknown_name", "no_answer",
    ]  # fmt: skip
    assert "Chassis/9 has neither EnvironmentMetrics nor Power" in reasons[1]
    assert not any("password" in r and "bmc-password" in r for r in reasons)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"<html>", "wrong_type"),
        ([1], "wrong_type"),
        ({"PowerWatts": {"Reading": "412 W"}}, "wrong_type"),
        (503, "no_answer"),
        (403, "denied"),
    ],
)
def test_what_redfish_cannot_use_is_a_reason_and_no_traceback(answer, code):
    path = "/redfish/v1/Chassis/1/EnvironmentMetrics"
    with JsonService({path: lambda _: answer}) as service:
        _, (reason,) = find(redfish=[RedfishMeter(url=service.url, chassis="1")])
    assert reason.startswith(f"{code}: ")


def test_modbus_reads_a_user_s_map_in_either_word_order_and_names_a_register_it_lacks():
    little = 0x0000_0190  # 400, its low word first
    with ModbusPlayer(
        {52: ("f", lambda: 231.5), 72: ("f", lambda: 12.5), 10: ("H", lambda: 41),
         20: ("I", lambda: (little & 0xFFFF) << 16 | little >> 16)}
    ) as device:  # fmt: skip
        section = ModbusMeter(
            host="127.0.0.1", port=device.port, preset="sdm630", name="panel",
            registers=[
                ModbusRegister(address=10, type="uint16", unit="kW", scale=0.01, name="feed"),
                ModbusRegister(address=20, type="uint32", unit="W", word_order="little"),
                ModbusRegister(address=9000, unit="W", name="none"),
            ],
        )  # fmt: skip
        found = ask(DEVICES["modbus"](section))
    values = {f"{s.channel.place} {s.channel.quantity}": s.value for s in found[:4]}
    assert values == {
        "panel power": 231.5,
        "panel energy": 12.5 * 3.6e6,
        "panel feed power": pytest.approx(410.0),
        "panel input 20 power": 400.0,
    }
    assert (found[4].code, found[4].channel.place) == ("unknown_name", "panel none")


IPMITOOL = """#!/bin/sh
[ "$IPMI_PASSWORD" = bmc-password ] || { echo "Error: bad password $IPMI_PASSWORD" >&2; exit 1; }
case "$*" in *bmc-password*) exit 9;; esac
cat <<END
    Instantaneous power reading:              %s Watts
    Minimum during sampling period:              8 Watts
    IPMI timestamp:                           Sat Nov 28 12:00:00 2026
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   %s
END
"""


def test_ipmitool_s_answers_are_read_and_its_password_is_on_no_command_line(tmp_path, monkeypatch):
    tool = tmp_path / "ipmitool"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    section = {"host": "10.0.0.9", "user": "admin", "password_env": "PLAYED_BMC"}

    def answered(watts: str, state: str, **more: str) -> Sample | MeterFault:
        tool.write_text(IPMITOOL % (watts, state))
        tool.chmod(0o755)
        (one,) = ask(IpmiDevice(IpmiMeter(**section | more)))
        return one

    assert answered("260", "activated").value == 260.0
    assert answered("260", "deactivated").code == "unsupported"
    assert answered("N/A", "activated").code == "wrong_type"
    assert answered("0", "activated").code == "unsupported"
    with pytest.raises(MeterError, match=r"bad password \*\*\*") as refused:
        answered("260", "activated", password_env="WRONG")
    assert refused.value.code == "denied"
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    _, (reason,) = find(ipmi=[IpmiMeter(**section)])
    assert reason == "no_answer: ipmitool is not installed: apt-get install ipmitool"


def series(values: list[tuple[float, str]], **labels: str) -> dict:
    return {"metric": labels, "values": [list(v) for v in values]}


def matrix(*result: dict) -> dict:
    return {"status": "success", "data": {"resultType": "matrix", "result": list(result)}}


def test_prometheus_gives_raw_samples_at_their_own_times_and_each_once():
    now, asked = time.time(), []
    rows = [(now - 2.5, "410.5"), (now - 1.5, "NaN"), (now - 0.5, "412")]
    names = {"instance": "box:9400", "gpu": "0", "UUID": "GPU-1"}

    def answer(query):
        asked.append(query["query"])
        return matrix(series(rows, **names))

    with JsonService({"/api/v1/query": answer}) as service:
        device = DEVICES["prometheus"](
            PrometheusMeter(
                url=service.url, metric="DCGM_FI_DEV_POWER_USAGE", match={"instance": "box:9400"}
            )
        )
        check = ValueCheck()
        first = check(device.ask())
        rows.append((now + 0.5, "413"))
        (second,) = check(device.ask())
        device.close()
    assert asked[0] == 'DCGM_FI_DEV_POWER_USAGE{instance="box:9400"}[30s]'
    assert [getattr(one, "value", None) for one in first] == [410.5, None, 412.0]
    assert first[1].code == "not_a_number"
    assert [s.wall_s for s in (first[0], first[2])] == [rows[0][0], rows[2][0]]
    assert second.value == 413.0
    assert first[0].channel.place == "DCGM_FI_DEV_POWER_USAGE box:9400 0"
    assert (first[0].channel.scope, first[0].channel.quantity) == ("gpu", "power")


def test_a_query_of_the_user_s_is_computed_on_its_period_and_what_it_lacks_is_said():
    asked = []

    def answer(query):
        asked.append(query["query"])
        return matrix(*(series([(time.time(), "1")], pdu=p) for p in ("a", "b")))

    with JsonService({"/api/v1/query": answer}) as service:
        section = {"url": service.url, "query": "sum by (pdu) (watts) / 2", "unit": "kW"}
        found = ask(DEVICES["prometheus"](PrometheusMeter(**section, scope="rack", name="q")))
        assert asked == ["(sum by (pdu) (watts) / 2)[30s:1000ms]"]
        assert [(s.channel.place, s.value) for s in found] == [("q a", 1000.0), ("q b", 1000.0)]
        _, (reason,) = find(prometheus=[PrometheusMeter(**section, most_series=1)])
        assert reason.startswith("wrong_type: ") and "2 series for" in reason
    with JsonService({"/api/v1/query": lambda _: matrix()}) as empty:
        section = PrometheusMeter(url=empty.url, metric="DCGM_FI_DEV_POWER_USAGE")
        _, (reason,) = find(prometheus=[section])
    assert (
        "unknown_name" in reason and "it has no series for DCGM_FI_DEV_POWER_USAGE{} now" in reason
    )


@pytest.mark.parametrize(
    ("quantity", "scope", "values", "codes"),
    [
        ("power", "node", [400, float("nan"), 401], ["", "not_a_number", ""]),
        ("power", "node", [-1, 0, 400], ["unsupported", "unsupported", ""]),
        ("power", "gpu", [0, 70, 5, 700], ["", "", "", ""]),
        ("power", "gpu", [2147483632, 70], ["unsupported", ""]),
        ("power", "node", [412, 0.412, 413, 412_000], ["", "unit_change", "", "unit_change"]),
        ("energy", "node", [1e6, 1.001e6, 1e12, 1.002e6], ["", "", "unit_change", ""]),
        ("energy", "node", [5.0, 3.0], ["", ""]),
    ],
)
def test_what_is_no_measurement_has_its_reason(quantity, scope, values, codes):
    """A counter that goes back is left to the window, which knows wraps from resets."""
    channel = Channel("snmp", "pdu", scope, quantity)
    check = ValueCheck()
    found = check(Sample(channel, float(i), float(i), float(v)) for i, v in enumerate(values))
    assert [getattr(one, "code", "") for one in found] == codes


def test_a_coarse_counter_checks_the_power_and_a_fine_one_stands_for_it():
    power = Channel("snmp", "pdu", "node", "power")
    for step_j, stands in ((3.6e5, "power"), (1e-3, "energy")):
        counter = Channel("snmp", "pdu", "node", "energy", resolution=step_j)
        (basis,) = bases([power, counter])
        assert [c.quantity for c in basis.channels] == [stands]


def test_one_board_seen_by_two_readers_is_never_added_and_a_part_not_to_its_whole():
    both = [
        Channel("nvml", "gpu0", "gpu", "energy"),
        Channel("prometheus", "dcgm 0", "gpu", "power"),
    ]
    assert [[c.reader for c in basis.channels] for basis in bases(both)] == [
        ["nvml"],
        ["prometheus"],
    ]
    whole = Channel("csv", "total", "node", "power", contains=("feed-a",))
    (basis,) = bases([whole, Channel("csv", "feed-a", "node", "power")])
    assert basis.channels == (whole,)


def test_the_sum_of_two_feeds_has_no_figure_while_one_is_missing():
    """One feed's power alone would be half."""
    with JsonService(redfish(lambda: 200.0)) as service:
        there = RedfishMeter(url=service.url, name="a", lag_s=0.0, averaging_s=0.0, period_s=0.05)
        gone = RedfishMeter(url="http://127.0.0.1:1", name="b")
        found, missing = find_meters(Meters(sources=["redfish"], redfish=[there, gone]))
        assert missing[0].scope == "node"
        with EnergySession(found, missing, interval_s=0.05) as session:
            start_s = session.now()
            time.sleep(0.6)
            energy = session.energy(start_s + 0.1, start_s + 0.4)
    assert (energy.energy_j, energy.reason) == (None, "device_missing")
    assert "one of its meters did not answer: no_answer: b: " in energy.text


def test_a_password_reaches_no_sample_fault_reason_or_pilot(monkeypatch):
    """Services repeat what they are sent; the pilot knows the variable's name alone."""
    secret = "s3cret-of-the-bmc"
    monkeypatch.setenv("BMC_SECRET", secret)
    section = RedfishMeter(url="http://127.0.0.1:1", user="root", password_env="BMC_SECRET")
    meters = Meters(sources=["redfish"], redfish=[section])
    assert secret not in json.dumps(meters.model_dump(mode="json"))
    path = "/redfish/v1/Chassis/1/EnvironmentMetrics"
    said: list[Callable] = [lambda _: 401, lambda _: {"PowerWatts": {"Reading": secret}}]
    for answer in said:
        with JsonService({path: answer}) as service:
            own = section.model_copy(update={"url": service.url, "chassis": "1"})
            found, missing = find_meters(Meters(sources=["redfish"], redfish=[own]))
        assert found == [] and secret not in str(missing) and "BMC_SECRET" not in str(missing)
    for bad in ("https://root:hunter2@bmc", "https://bmc/?token=hunter2"):
        with pytest.raises(ValueError, match="no base URL") as error:
            RedfishMeter(url=bad)
        assert "hunter2" not in str(error.value.errors(include_input=False))


def test_a_missing_library_names_the_extra(monkeypatch):
    for name, section in (
        (
            "pysnmp.hlapi.v3arch.asyncio",
            {"snmp": [SnmpMeter(host="a", profile="apc", user="monitor")]},
        ),
        ("pymodbus.client", {"modbus": [ModbusMeter(host="a", preset="sdm630")]}),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match="not installed") as error:
            find(**section)
        assert "ternary-workbench[meters]" in error.value.next_step


@pytest.mark.parametrize(
    ("section", "fields", "why"),
    [
        (SnmpMeter, {"host": "a"}, "give a profile, or oids"),
        (SnmpMeter, {"host": "a", "profile": "acme"}, "no profile acme; give one of apc"),
        (SnmpMeter, {"host": "a", "profile": "apc-outlet"}, "needs index"),
        (SnmpMeter, {"host": "a", "profile": "apc", "auth_env": "A"}, "which needs user"),
        (IpmiMeter, {"host": "a"}, "needs user and password_env"),
        (ModbusMeter, {"host": "a"}, "give a preset, or registers"),
        (PrometheusMeter, {"url": "http://a", "query": "x"}, "a query needs unit"),
        (PrometheusMeter, {"url": "http://a", "metric": "x"}, "give it as query, with its unit"),
        (Meters, {"sources": ["snmp"]}, "the source snmp needs a meter in snmp"),
    ],
)
def test_a_meter_that_is_not_whole_is_an_error_of_the_pilot(section, fields, why):
    with pytest.raises(ValueError, match=why):
        section(**fields)


def test_every_profile_metric_and_preset_has_its_scope_and_can_be_asked():
    assert PROFILES.keys() == SNMP_SCOPES.keys()
    assert KNOWN.keys() == PROMETHEUS_SCOPES.keys()
    for name in PROFILES:
        SnmpMeter(host="a", profile=name, index="1")
    for preset in PRESETS:
        ModbusMeter(host="a", preset=preset)


def test_what_docs_energy_md_says_to_copy_is_valid():
    text = (Path(__file__).parents[2] / "docs/energy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(measure_ab:.*?)```", text, re.S)
    sections = [YAML(typ="safe", pure=True).load(block)["measure_ab"] for block in blocks]
    given = [section["meters"] for section in sections if "meters" in section]
    for meters in given:
        Meters.model_validate(meters)
    assert {"csv", "snmp", "redfish", "ipmi", "modbus", "prometheus"} <= {
        k for g in given for k in g
    }
    for name in (*SNMP_SCOPES, *PROMETHEUS_SCOPES, *PRESETS, *get_args(FaultCode)[:8]):
        assert f"`{name}`" in text, name


NVML = """
import json, os, sys
from workbench.measure.meters import EnergySession
from workbench.measure.meters.clock import SteppedClock
from workbench.measure.meters import find, nvml
clock = SteppedClock()
nvml.SYSTEM_CLOCK = clock
watts, joules = [100.0, 300.0], [5.0, 7.0]
def write():
    for i in range(2):
        joules[i] += 0.02 * watts[i]
    with open(os.environ["PLAYED_NVML"], "w") as file:
        file.writelines(f"{round(1e3 * j)} {round(1e3 * w)}\\n" for j, w in zip(joules, watts))
write()
meter = nvml.find_nvml(None)
meter._clock = clock
end = clock.every(0.02, write)
said = []
with EnergySession([meter], clock=clock) as session:
    clock.sleep(2.0)
    start_s = session.now()
    watts[:] = [200.0, 400.0]
    clock.sleep(20.0)
    finish_s = session.now()
    watts[:] = [100.0, 300.0]
    clock.sleep(2.0)
    energy = session.energy(start_s, finish_s)
    said += [energy.energy_j, energy.error_j, energy.scope]
    begin_s = session.now()
    clock.sleep(5.0)
    end()
    os.remove(os.environ["PLAYED_NVML"])
    clock.sleep(10.0)
    lost = session.energy(begin_s, session.now())
    said += [lost.energy_j, lost.reason, lost.text]
print(json.dumps(said))
"""


def test_an_nvml_library_of_two_boards_is_read_whole_and_lost_in_the_middle(tmp_path):
    if not compiler_here():
        pytest.skip("no C compiler here")
    folder = build_nvml(tmp_path)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(folder),
        "PLAYED_NVML": str(tmp_path / "boards"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, "-c", NVML], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    joules, error_j, scope, lost, reason, text = json.loads(done.stdout.splitlines()[-1])
    assert abs(joules - 12_000.0) <= error_j < 0.02 * 12_000
    assert scope == "GPU boards alone (nvml gpu0 + nvml gpu1)"
    assert (lost, reason) == (None, "not_bracketed")
    assert "GPU is lost" in text


@pytest.mark.slow
@pytest.mark.skipif(not prometheus_here(), reason="no prometheus here: apt-get install prometheus")
def test_a_real_prometheus_gives_the_area_of_a_known_power_and_its_end(tmp_path):
    began_s = time.monotonic()

    def watts(at_s: float) -> float:
        return 300.0 if 4.0 <= at_s - began_s < 10.0 else 100.0

    def joules(at_s: float) -> float:
        busy_s = min(max(at_s - began_s - 4.0, 0.0), 6.0)
        return 1000.0 + 100.0 * (at_s - began_s) + 200.0 * busy_s

    def shown() -> dict[str, float]:
        now_s = time.monotonic()
        board = '{gpu="0",Hostname="box"}'
        return {
            f"DCGM_FI_DEV_POWER_USAGE{board}": watts(now_s),
            f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{board}": 1e3 * joules(now_s),
            'node_rapl_package_joules_total{index="0",path="p"}': joules(now_s),
        }

    with PrometheusServer(tmp_path, shown) as server:
        # Prometheus looks for its targets five seconds after it is ready.
        time.sleep(8.0)
        sections = [
            PrometheusMeter(url=server.url, metric=name, period_s=0.2, lag_s=0.0, averaging_s=0.0)
            for name in (
                "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
                "node_rapl_package_joules_total",
            )
        ]
        began_s = time.monotonic()
        found, missing = find_meters(Meters(sources=["prometheus"], prometheus=sections))
        assert missing == []
        with EnergySession(found) as session:
            time.sleep(max(0.0, began_s + 13.0 - time.monotonic()))
            start_s, end_s = began_s + 2.0, began_s + 11.0
            energy = session.energy(start_s, end_s)
            true_j = 2 * (joules(end_s) - joules(start_s))
            server.close()
            time.sleep(4.0)
            killed = session.energy(end_s, session.now())
    assert energy.basis == "gpu + cpu"
    assert abs(energy.energy_j - true_j) <= energy.error_j + 0.01 * true_j
    assert abs(energy.energy_j / true_j - 1) < 0.02
    assert (killed.energy_j, killed.reason) == (None, "not_bracketed")
