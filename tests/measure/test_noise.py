"""What else a machine did, from readings whose answer is known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workbench.errors import StageError
from workbench.measure import noise
from workbench.measure.noise import Counters, Noise, NoiseWatch, require_quiet
from workbench.pilot.sections.readiness import Quiet

LIMITS = Quiet(max_others_share=0.1, max_steal_share=0.02, max_pressure_share=0.3)


def counters(wall_s: float, own_s: float, busy_s: float, **more: float) -> Counters:
    fields = {"steal_s": 0.0, "pressure_s": 0.0} | more
    return Counters(wall_s, 2, own_s, busy_s, **fields)


def test_others_are_what_is_busy_without_the_own_time() -> None:
    seen = Noise.between(counters(0, 5, 100), counters(10, 20, 125, steal_s=1.0, pressure_s=4.0))
    assert seen.others_share == pytest.approx(0.5), "25 s busy, 15 own, of 20"
    assert seen.steal_share == pytest.approx(0.05)
    assert seen.pressure_share == pytest.approx(0.4)
    assert len(seen.disturbances(LIMITS)) == 3
    assert seen.disturbances(LIMITS)[0] == "other processes took 50% (at most 10%)"


def test_what_the_system_does_not_tell_disturbs_nothing(tmp_path: Path) -> None:
    unread = Counters.read(proc=tmp_path)
    assert (unread.busy_s, unread.steal_s, unread.pressure_s) == (None, None, None)
    assert Noise.between(unread, unread).disturbances(LIMITS) == []


def test_linux_files_are_read(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text(f"cpu  {tick} 0 {tick} 900 5 0 {tick} {2 * tick} 0 0\ncpu0 1\n")
    (tmp_path / "pressure").mkdir()
    some = "some avg10=1.00 avg60=0.10 avg300=0.00 total=2500000\nfull avg10=0.00 total=0\n"
    (tmp_path / "pressure" / "cpu").write_text(some)
    (tmp_path / "77").mkdir()
    fields = " ".join(["0"] * 11 + [str(3 * tick), str(tick)])
    (tmp_path / "77" / "stat").write_text(f"77 (a server (x)) {fields} 0 0\n")
    alone, with_server = Counters.read(proc=tmp_path), Counters.read([77], tmp_path)
    assert (alone.busy_s, alone.steal_s, alone.pressure_s) == (3.0, 2.0, 2.5)
    assert with_server.own_s - alone.own_s == pytest.approx(4.0, abs=0.5)


@pytest.mark.parametrize("action", ["wait", "warn", "refuse"])
def test_a_busy_machine_is_waited_for_warned_about_or_refused(
    action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(noise, "LOOK_S", 0.001)
    looks = iter([["others took 50%"], ["others took 50%"], []])
    monkeypatch.setattr(Noise, "disturbances", lambda self, limits: next(looks))
    limits = Quiet(action=action, wait_s=60.0)
    if action == "refuse":
        with pytest.raises(StageError, match="not quiet: others took 50%"):
            require_quiet(limits, said.append)
        return
    require_quiet(limits, said.append)
    assert len(said) == 1
    assert ("became quiet" if action == "wait" else "measured all the same") in said[0]


@pytest.mark.parametrize("action", ["wait", "warn", "refuse"])
def test_in_company_nobody_waits_for_the_others_and_refuse_still_refuses(
    action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(noise.IN_COMPANY, "1")
    monkeypatch.setattr(noise, "LOOK_S", 0.001)
    monkeypatch.setattr(Noise, "disturbances", lambda self, limits: ["others took 50%"])
    limits, said = Quiet(action=action, wait_s=3600.0), []
    if action == "refuse":
        with pytest.raises(StageError, match="not quiet"):
            require_quiet(limits, said.append)
        return
    found = require_quiet(limits, said.append)
    assert "run beside this one" in said[0] and found.others_share is None


def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(noise, "LOOK_S", 0.001)
    monkeypatch.setattr(Noise, "disturbances", lambda self, limits: ["others took 50%"])
    require_quiet(Quiet(action="wait", wait_s=0.01), said.append)
    assert "measured all the same" in said[0]


def test_a_watch_marks_the_stretch_in_which_others_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds, in two of which another process takes a core; a stretch is a second."""
    readings = [
        counters(float(at), 0.5 * at, 0.5 * at + max(0, min(2, at - 4))) for at in range(11)
    ]
    now = iter(readings)
    monkeypatch.setattr(Counters, "read", lambda processes=(): next(now))
    watch = NoiseWatch(LIMITS, list, each_s=0.1)
    for at in range(1, 11):
        monkeypatch.setattr(noise.time, "monotonic", lambda at=at: float(at))
        watch.look()
    monkeypatch.setattr(noise.time, "monotonic", lambda: 10.4)
    watch.look(last=True)
    table = watch.table()
    assert len(table) == 10 and table["kept"].all(), "0.4 s at the end are too short to tell"
    assert list(table.index[table["disturbed"] != ""]) == [4, 5]
    assert table["others_share"][4] == pytest.approx(0.5)
