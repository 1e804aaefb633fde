"""What a power log is told before anything is paid for."""

from datetime import UTC, datetime, timedelta

import pytest

from workbench.measure.meters.csv_log import CsvMeter
from workbench.measure.meters.log_check import LogCheck, check_log


def checked(
    clock, path, period_s=1.0, watts="400", shift_s=0.0, grows=True, text=str, turns=25,
    budget_s=5000.0, **options,
) -> LogCheck:  # fmt: skip
    """A logger that wrote for a while and goes on, or not; ``shift_s``: of its clock."""
    began_s = clock.wall_s()

    def row(now_s: float) -> str:
        return f"{text(now_s + shift_s)},pdu,{watts}\n"

    past = [row(began_s - k * period_s) for k in range(30, 0, -1)]
    path.write_text("timestamp,source,watts\n" + "".join(past))

    def write() -> None:
        with path.open("a") as file:
            file.write(row(clock.wall_s()))

    if grows:
        clock.every(period_s, write)
    return check_log(CsvMeter(path, clock, **options), clock, 3.0, turns, budget_s)


def only(found: LogCheck) -> str:
    (problem,) = found.problems
    return problem


def test_a_good_log_has_no_problem_and_says_what_it_takes(tmp_path, clock):
    """6 blocks of 25 turns of 22 s are 55 minutes."""
    found = checked(clock, tmp_path / "power.csv")
    assert found.problems == () and found.period_s == pytest.approx(1.0)
    assert "about 55 min: 6 blocks of 25 turns of 22 s" in found.takes


def test_a_log_whose_rate_the_session_s_time_does_not_allow_is_told_what_it_takes(tmp_path, clock):
    problem = only(checked(clock, tmp_path / "power.csv", budget_s=120.0))
    assert "turns of 6 s or more, 15 min for 6 blocks of 25 turns" in problem
    assert "raise measure_ab.budget_s (now 120) to 3300" in problem


def test_a_row_a_minute_is_too_few(tmp_path, clock):
    problem = only(checked(clock, tmp_path / "power.csv", period_s=60.0, budget_s=1e9))
    assert "a row every 60 s" in problem and "more often" in problem


def test_a_log_of_yesterday_that_does_not_grow_is_found(tmp_path, clock):
    problem = only(checked(clock, tmp_path / "power.csv", shift_s=-86400.0, grows=False))
    assert "24.0 h old" in problem and "did not grow" in problem


def test_kilowatts_called_watts_are_found_and_read_as_such_where_declared(tmp_path, clock):
    problem = only(checked(clock, tmp_path / "power.csv", watts="1.42"))
    assert problem == "pdu shows 1.42 W: kilowatts? Then csv_unit: kW"
    assert checked(clock, tmp_path / "kw.csv", watts="1.42", unit="kW").problems == ()
    problem = only(checked(clock, tmp_path / "power.csv", watts="1420", unit="kW"))
    assert "1420 kW: is csv_unit right?" in problem


def test_zero_watts_are_no_measurement(tmp_path, clock):
    assert "no measurement" in only(checked(clock, tmp_path / "power.csv", watts="0"))


def berlin_summer(now_s: float) -> str:
    """A local clock two hours ahead of UTC that does not say so."""
    return (datetime.fromtimestamp(now_s, UTC) + timedelta(hours=2)).strftime(
        "%Y-%m-%d %H:%M:%S.%f"
    )


def test_local_times_ask_for_their_zone(tmp_path, clock):
    found = checked(clock, tmp_path / "power.csv", text=berlin_summer)
    assert "no offset from UTC; declare measure_ab.meters.csv_time_zone" in found.problems[0]
    assert found.problems[1] == "it has no row that is a sample"
    wrong = only(checked(clock, tmp_path / "utc.csv", text=berlin_summer, time_zone="UTC"))
    assert "2.0 h in the future" in wrong and "what a local time taken for UTC" in wrong
    right = checked(clock, tmp_path / "zone.csv", text=berlin_summer, time_zone="Etc/GMT-2")
    assert right.problems == ()


def test_a_clock_that_is_ahead_is_said(tmp_path, clock):
    found = checked(clock, tmp_path / "power.csv", shift_s=5.0)
    assert "dated 5.0 s ahead" in found.problems[-1]


def test_several_things_under_one_name_are_said(tmp_path, clock):
    found = checked(clock, tmp_path / "power.csv", watts="380\n" + f"{clock.wall_s()},pdu,381")
    assert any("rows at one time" in problem for problem in found.problems)
