"""A power log that came after a run: its energy, and what stays as it was."""

import json

import numpy as np
import pandas as pd
import pytest

from workbench.errors import ConfigError, StageError
from workbench.measure.exports.forms import Options
from workbench.measure.meters.recording import Recording, sample_row
from workbench.measure.meters.sample import Channel, Sample
from workbench.measure.statistics import share
from workbench.pilot.resolve import resolve
from workbench.records.run import find_run
from workbench.records.stage_record import StageRecord
from workbench.roadmap import STAGES
from workbench.runner.import_log import import_log
from workbench.runner.pilot_run import run_pilot, write_report
from workbench.stages.keys import stage_key

WATTS = {"full_precision": 420.0, "ternary": 300.0, "full_precision_again": 420.0}
LOAD_WATTS = {
    "full_precision": 400.0,
    "ternary": 320.0,
    "post_training": 330.0,
    "int8": 350.0,
    "int4": 340.0,
}
IDLE_W = 180.0
TURN_S = 30.0
BEGAN_S = 1_772_438_400.0
RATIO = WATTS["full_precision"] / WATTS["ternary"]


def turns(blocks=6):
    """Table ``energies`` of a run without a meter: turns of one class, in changing orders."""
    draw, at_s, rows = np.random.default_rng(3), BEGAN_S, []
    for block in range(blocks):
        for order, arm in enumerate(draw.permutation(list(WATTS))):
            at_s += 1.0
            rows.append(
                {"block": block, "order": order, "arm": arm, "class": "interactive_512",
                 "tokens": 512, "sequences": 1, "start_s": at_s, "end_s": at_s + TURN_S,
                 "basis": "", "covers": "", "kind": None, "energy_j": None, "idle_w": None,
                 "error_j": 0.0, "bias_j": 0.0, "how": "no_meter: rapl: no powercap"}
            )  # fmt: skip
            at_s += TURN_S
    return pd.DataFrame(rows)


def wall_log(table, lag_s=0.0, averaging_s=0.0, period_s=1.0, shift_s=0.0, factor=1.0):
    """(times, watts) of a PDU beside those turns: the mean over ``averaging_s`` up to ``lag_s``."""
    windows = table if isinstance(table, list) else table.to_dict("records")
    end_s = max(window["end_s"] for window in windows)
    grid = np.arange(BEGAN_S - 60.0, end_s + 60.0, 0.05)
    power = np.full(len(grid), IDLE_W)
    for turn in windows:
        drawn = turn.get("watts") or (WATTS if "class" in turn else LOAD_WATTS)[turn["arm"]]
        power[(grid >= turn["start_s"]) & (grid < turn["end_s"])] = drawn
    energy = np.concatenate([[0.0], np.cumsum(power) * 0.05])
    edges = np.append(grid, grid[-1] + 0.05)
    at_s = np.arange(BEGAN_S - 30.0, end_s + 30.0, period_s)
    span_s = max(averaging_s, 0.05)
    until, since = (np.interp(at_s - lag_s - back, edges, energy) for back in (0.0, span_s))
    noise = np.random.default_rng(1).normal(0, 2.0, len(at_s))
    return at_s + shift_s, factor * ((until - since) / span_s + noise)


def as_csv(path, log, source="pdu"):
    lines = [f"{at_s:.3f},{source},{w:.3f}" for at_s, w in zip(*log, strict=True)]
    path.write_text("timestamp,source,watts\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def run(make_run, monkeypatch):
    """Its page is drawn by the one test that reads it."""
    monkeypatch.setattr("workbench.runner.import_log.write_report", lambda *_: None)
    run = make_run()
    record = StageRecord.load(run.stage_folder("measure_ab"))
    record.save_table("energies", turns())
    record.save()
    return run


def windows_of_load(begin_s, blocks=6):
    """Table ``load_energies`` of a run without a meter, and ten requests of each window."""
    at_s, rows, requests = begin_s, [], []
    for block in range(blocks):
        for order, arm in enumerate(LOAD_WATTS):
            at_s += 1.0
            rows.append(
                {"block": block, "order": order, "arm": arm, "start_s": at_s,
                 "end_s": at_s + TURN_S, "basis": "", "covers": "", "kind": None,
                 "energy_j": None, "idle_w": None, "idle_error_w": 0.0, "error_j": 0.0,
                 "bias_j": 0.0, "how": "no_meter: rapl: no powercap"}
            )  # fmt: skip
            requests += [
                {"block": block, "arm": arm, "status": "ok" if n else "error", "sent_s": 3.0 * n,
                 "last_token_s": 3.0 * n + 2.0, "prompt_tokens": 100, "output_tokens": 50}
                for n in range(10)
            ]  # fmt: skip
            at_s += TURN_S
    return pd.DataFrame(rows), pd.DataFrame(requests)


def test_the_load_has_its_energy_from_the_log_as_well(run, tmp_path):
    table = turns()
    load, requests = windows_of_load(float(table["end_s"].max()) + 20.0)
    shapes = [
        {"block": 0, "order": 0, "arm": arm, "class": "batch_1", "batch": 1, "phase": phase,
         "seconds": 1.0, "tokens": 100, "sequences": 1}
        for arm in LOAD_WATTS for phase in ("prefill", "decode")
    ]  # fmt: skip
    record = StageRecord.load(run.stage_folder("measure_ab"))
    for name, of in (("load_energies", load), ("load_requests", requests),
                     ("blocks", pd.DataFrame(shapes))):  # fmt: skip
        record.save_table(name, of)
    for arm in LOAD_WATTS:
        labels = {"arm": arm, "source": "trained"}
        record.add(share(32, 64).metric("accepted_share", "share", "checks", **labels))
    record.save()
    log = wall_log([*table.to_dict("records"), *load.to_dict("records")], 1.0, 1.0)
    record = attach(run, as_csv(tmp_path / "pdu.csv", log))
    for arm, watts in LOAD_WATTS.items():
        each = record.metric("energy_j_per_request", arm=arm, source="load")
        assert each.value == pytest.approx(watts * TURN_S / 10, rel=0.02)
        assert "pdu.csv (sha256" in each.how
        accepted = record.metric("energy_j_per_accepted_answer", arm=arm)
        assert accepted.value == pytest.approx(watts * TURN_S / 9 / 0.5, rel=0.02)
        assert f"50.00% of the answers of {arm} to 64 own prompts" in accepted.how
    ratio = record.metric("energy_ratio", arm="ternary", source="load")
    assert ratio.lo < 400.0 / 320.0 < ratio.hi
    assert record.facts["load_energy_basis"]["ternary"] == "node"
    assert ratio_of(record).value == pytest.approx(RATIO, rel=0.01)


TRAINING_S, REST_S, REPLAY_S = 120.0, 22.0, 40.0
"""A rest before and after all work, as long as turns that wait for a log of afterwards."""
NO_METER = {
    "basis": "", "covers": "", "kind": None, "energy_j": None, "idle_w": None,
    "idle_error_w": 0.0, "error_j": 0.0, "bias_j": 0.0, "how": "no_meter: rapl: no powercap",
}  # fmt: skip


@pytest.fixture
def whole_run(run):
    """(Run, what draws power in it): its turns, then a training of both arms, then a replay that
    goes back in its middle; with the rests around each."""
    at_s = float(turns()["end_s"].max()) + REST_S
    drawn = turns().to_dict("records")
    rests = {"measure_ab": [[BEGAN_S - 25.0, BEGAN_S], [at_s - REST_S, at_s]]}
    training = []
    for arm in ("full_precision", "ternary"):
        window = {"start_s": at_s, "end_s": at_s + TRAINING_S}
        training.append({"attempt": 0, "whole": True, "window": arm, **window, **NO_METER})
        drawn.append({"watts": WATTS[arm], **window})
        at_s += TRAINING_S
    rests["train_qat"] = [[at_s, at_s + REST_S]]
    at_s += REST_S
    replay = [
        {"window": name, "requests": requests, "start_s": at_s + a, "end_s": at_s + b, **NO_METER}
        for name, requests, a, b in (
            ("replay", 40, 0.0, REPLAY_S), ("before", 20, 0.0, 20.0), ("after", 20, 20.0, REPLAY_S)
        )
    ]  # fmt: skip
    for row, arm in zip(replay[1:], ("ternary", "full_precision"), strict=True):
        drawn.append({"watts": WATTS[arm], "start_s": row["start_s"], "end_s": row["end_s"]})
    rests["deploy_rollback"] = [[at_s + REPLAY_S, at_s + REPLAY_S + REST_S]]
    for stage, table in (("measure_ab", turns()), ("train_qat", pd.DataFrame(training)),
                         ("deploy_rollback", pd.DataFrame(replay))):  # fmt: skip
        record = StageRecord.load(run.stage_folder(stage))
        record.save_table("energies", table)
        record.facts["meters"] = {"found": [], "missing": {}, "rests": rests[stage]}
        record.save()
    return run, drawn


@pytest.mark.parametrize(("lag_s", "averaging_s"), [(0.0, 0.0), (1.0, 1.0)])
def test_training_and_deployment_have_their_energy_too_and_all_of_it_net_of_idle(
    whole_run, tmp_path, lag_s, averaging_s
):
    run, drawn = whole_run
    record = attach(run, as_csv(tmp_path / "pdu.csv", wall_log(drawn, lag_s, averaging_s)))
    assert record.facts["attached"]["found"]["no_idle"] == ""
    labels = {"arm": "ternary", "class": "interactive_512"}
    net = record.metric("energy_net_j_per_request", **labels)
    assert net.lo < (WATTS["ternary"] - IDLE_W) * TURN_S < net.hi
    trained = find_run("sample").record("train_qat")
    for arm in ("full_precision", "ternary"):
        each = trained.metric("training_energy_j", arm=arm)
        assert each.value == pytest.approx(WATTS[arm] * TRAINING_S, rel=0.01)
        net_j = float(each.how.split("net of idle ")[1].split(" J")[0])
        assert net_j == pytest.approx((WATTS[arm] - IDLE_W) * TRAINING_S, rel=0.02)
        assert "pdu.csv (sha256 " in each.how
    deployed = find_run("sample").record("deploy_rollback")
    whole = deployed.metric("deployment_energy_j")
    mean_w = (WATTS["ternary"] + WATTS["full_precision"]) / 2
    assert whole.value == pytest.approx(mean_w * REPLAY_S, rel=0.01)
    assert "net of idle" in whole.how and "nothing net" not in whole.how
    after = deployed.metric("energy_j_per_request", arm="full_precision", phase="after")
    assert after.value == pytest.approx(WATTS["full_precision"], rel=0.01)
    assert "energy is from pdu.csv" in " ".join(deployed.notes)


def test_a_log_of_the_turns_alone_says_why_the_training_has_no_energy(whole_run, tmp_path, capsys):
    run, drawn = whole_run
    times_s, watts = wall_log(drawn)
    own = times_s < turns()["end_s"].max() + REST_S + 2.0
    record = attach(run, as_csv(tmp_path / "pdu.csv", (times_s[own], watts[own])))
    assert ratio_of(record).value == pytest.approx(RATIO, rel=0.01)
    each = find_run("sample").record("train_qat").metric("training_energy_j", arm="ternary")
    assert each.value is None and "not_bracketed" in each.reason and "pdu.csv" in each.reason
    assert "no training_energy_j (arm full_precision)" in capsys.readouterr().out


def test_a_run_that_never_rested_says_that_nothing_is_net_of_idle(run, tmp_path, capsys):
    record = attach(run, as_csv(tmp_path / "pdu.csv", wall_log(turns())))
    labels = {"arm": "ternary", "class": "interactive_512"}
    assert record.metric("energy_net_j_per_request", **labels).value is None
    said = "nothing is net of idle: this run's records hold no rest"
    assert said in " ".join(record.notes) and said in capsys.readouterr().out


def test_rests_too_short_for_the_log_are_named_so(run, tmp_path):
    record = StageRecord.load(run.stage_folder("measure_ab"))
    record.facts["meters"] = {"rests": [[BEGAN_S - 3.0, BEGAN_S]]}
    record.save()
    record = attach(run, as_csv(tmp_path / "pdu.csv", wall_log(turns())))
    said = record.facts["attached"]["found"]["no_idle"]
    assert "of its 1 rest none has a figure (too_short: " in said and "turn_s" in said


def attach(run, path, form="csv", options=None, **declared):
    import_log(path, form, run.name, options or Options(), **declared)
    return find_run("sample").record("measure_ab")


def ratio_of(record):
    return record.metric("energy_ratio", arm="ternary", **{"class": "interactive_512"})


@pytest.mark.parametrize(("lag_s", "averaging_s"), [(0.0, 0.0), (2.0, 3.0)])
def test_energy_of_each_arm_comes_out_of_a_late_and_averaged_log(run, tmp_path, lag_s, averaging_s):
    record = attach(run, as_csv(tmp_path / "pdu.csv", wall_log(turns(), lag_s, averaging_s)))
    ratio = ratio_of(record)
    assert ratio.lo < RATIO < ratio.hi and ratio.value == pytest.approx(RATIO, rel=0.01)
    each = record.metric("energy_j_per_request", arm="ternary", **{"class": "interactive_512"})
    assert each.value == pytest.approx(WATTS["ternary"] * TURN_S, rel=0.01)
    assert "the whole node (csv pdu)" in each.how and "pdu.csv (sha256 " in each.how
    assert "attached afterwards on" in each.how
    assert record.facts["energy_basis"] == {"interactive_512": "node"}
    learned = record.facts["attached"]["found"]["learned"][0]
    assert f"lag {lag_s:.1f}" in learned or averaging_s == 0.0


def test_a_logger_whose_clock_is_ahead_is_put_right(run, tmp_path):
    record = attach(run, as_csv(tmp_path / "pdu.csv", wall_log(turns(), 1.0, 1.0, shift_s=5.0)))
    assert ratio_of(record).value == pytest.approx(RATIO, rel=0.01)
    assert "lag 6." in record.facts["attached"]["found"]["learned"][0]


def test_nothing_but_energy_changes_and_the_record_of_before_stays(run, tmp_path):
    folder = run.stage_folder("measure_ab")
    before, plain = (folder / "record.json").read_bytes(), run.record("measure_ab")
    record = attach(run, as_csv(tmp_path / "pdu.csv", wall_log(turns())))
    assert (folder / "record.json").read_bytes() == before
    energy = {m.name for m in record.metrics if m.name.startswith("energy")}
    others = [[m for m in one.metrics if m.name not in energy] for one in (plain, record)]
    assert others[0] == others[1] and len(others[0]) > 50
    assert len(record.table("energies")) == len(turns())
    assert set(record.tables) == set(plain.tables)


def test_the_report_is_judged_with_it_and_the_judgement_of_before_is_kept(run, tmp_path):
    before = run.record("report")
    gates = before.table("gates")
    gate = gates[gates["metric"] == "energy_j_per_token"].iloc[0]
    assert gate["value"] is None or np.isnan(gate["value"])
    attach(run, as_csv(tmp_path / "pdu.csv", wall_log(turns())))
    report = run.record("report")
    gates = report.table("gates")
    assert gates[gates["metric"] == "energy_j_per_token"]["value"].notna().any()
    assert len(list((run.folder / "stages").glob("report.until-*/record.json"))) == 1
    assert "judged again after pdu.csv" in report.notes[-1]
    page = write_report(run, run.resolved()).read_text()
    assert "pdu.csv (sha256 " in page and "attached afterwards" in page


def test_the_pilot_run_again_keeps_it(run, tmp_path, monkeypatch):
    """Whether a stage is finished is told by its key, and what is attached changes none."""
    resolved = run.resolved()
    for name in STAGES:
        record = StageRecord.load(run.stage_folder(name))
        record.key = stage_key(name, resolved, run)
        record.save()
    attach(run, as_csv(tmp_path / "pdu.csv", wall_log(turns())))
    judged = find_run("sample").record("report")
    monkeypatch.setattr("workbench.runner.pilot_run.write_report", lambda *_: run.report)
    monkeypatch.setattr("workbench.stages.execute.stage_run", None)  # nothing is computed
    again, _ = run_pilot(resolve(tmp_path / "pilot.yaml"), notebooks=False)
    assert again.folder == run.folder
    assert ratio_of(again.record("measure_ab")).value == pytest.approx(RATIO, rel=0.01)
    assert again.record("report").notes == judged.notes


def test_attached_twice_the_second_stands_and_the_first_is_named(run, tmp_path):
    attach(run, as_csv(tmp_path / "first.csv", wall_log(turns(), factor=2.0)))
    record = attach(run, as_csv(tmp_path / "second.csv", wall_log(turns())))
    each = record.metric("energy_j_per_request", arm="ternary", **{"class": "interactive_512"})
    assert each.value == pytest.approx(WATTS["ternary"] * TURN_S, rel=0.01)
    assert "first.csv" not in each.how and "second.csv" in each.how
    (replaced,) = record.facts["attached"]["replaced"]
    assert replaced["file"] == "first.csv"
    kept = run.stage_folder("measure_ab") / replaced["kept_in"] / "attached.json"
    assert json.loads(kept.read_text())["file"] == "first.csv"
    assert any("replaces first.csv" in note for note in record.notes)


def test_a_recording_is_attached_with_what_its_channels_declare(run, tmp_path):
    """A counter is exact: nothing is to be learned of it."""
    times_s, watts = wall_log(turns(), period_s=0.5)
    joules = np.concatenate([[0.0], np.cumsum(np.diff(times_s) * (watts[1:] + watts[:-1]) / 2)])
    channel = Channel("rapl", "package-0", "cpu", "energy", period_s=0.001, lag_s=0.0,
                      averaging_s=0.0)  # fmt: skip
    recording = Recording(tmp_path / "power.parquet")
    recording.append(
        [sample_row(Sample(channel, t, t, j)) for t, j in zip(times_s, joules, strict=True)]
    )
    recording.finish()
    record = attach(run, tmp_path / "power.parquet")
    assert ratio_of(record).value == pytest.approx(RATIO, rel=0.01)
    assert "CPU packages alone (rapl package-0)" in ratio_of(record).how
    assert record.facts["attached"]["found"]["learned"] == []


def test_a_coarse_log_gives_no_number_and_says_why(run, tmp_path):
    path = as_csv(tmp_path / "pdu.csv", wall_log(turns(), period_s=15.0))
    record = attach(run, path)
    assert ratio_of(record) is None
    each = record.metric("energy_j_per_request", arm="ternary", **{"class": "interactive_512"})
    assert each.value is None and "allowed: 3 s" in each.reason and "pdu.csv" in each.reason


def test_a_gap_costs_its_blocks_alone(run, tmp_path):
    table = turns()
    times_s, watts = wall_log(table)
    gap = table[table["block"] == 2]
    inside = (times_s > gap["start_s"].iloc[0] + 5) & (times_s < gap["start_s"].iloc[0] + 15)
    record = attach(run, as_csv(tmp_path / "pdu.csv", (times_s[~inside], watts[~inside])))
    assert "1 of 6 blocks left out (gap: " in ratio_of(record).how
    assert ratio_of(record).value == pytest.approx(RATIO, rel=0.01)


def test_a_log_that_does_not_show_the_turns_gives_no_number_unless_its_lag_is_declared(
    run, tmp_path
):
    times_s, _ = wall_log(turns())
    flat = as_csv(
        tmp_path / "pdu.csv", (times_s, np.random.default_rng(5).normal(400, 2, len(times_s)))
    )
    record = attach(run, flat)
    assert ratio_of(record) is None
    assert "does not show the turns" in record.facts["attached"]["found"]["learned"][0]
    record = attach(run, flat, lag_s=1.0, averaging_s=2.0)
    assert ratio_of(record).value == pytest.approx(1.0, abs=0.01)
    assert record.facts["attached"]["declared"]["lag_s"] == 1.0


def test_a_log_of_another_time_is_refused_and_nothing_is_attached(run, tmp_path):
    for shift_s, said in ((-7200.0, "off by 2"), (-86400.0 * 30, "is of 2026-01-3")):
        path = as_csv(tmp_path / "pdu.csv", wall_log(turns(), shift_s=shift_s))
        with pytest.raises(ConfigError) as raised:
            attach(run, path)
        assert said in str(raised.value)
    assert not (run.stage_folder("measure_ab") / "attached").exists()


def test_a_run_without_turns_or_a_zone_that_is_none_is_refused(run, tmp_path):
    path = as_csv(tmp_path / "pdu.csv", wall_log(turns()))
    with pytest.raises(ConfigError, match="no such time zone"):
        attach(run, path, options=Options(zone="Berlin"))
    record = StageRecord.load(run.stage_folder("measure_ab"))
    del record.tables["energies"]
    record.save()
    with pytest.raises(StageError, match="no finished measure_ab with turns"):
        attach(run, path)
