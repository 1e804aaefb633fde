"""`workbench plan`: a fleet of each arm from the records of a run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench import cli
from workbench.errors import ConfigError
from workbench.pilot.resolve import resolve
from workbench.planner import fleet as fleet_module
from workbench.planner.costs import ReplicaCosts
from workbench.planner.fleet import RequestMix
from workbench.planner.simulation import StepCosts
from workbench.records.run import open_run
from workbench.records.stage_record import StageRecord
from workbench.runner.pilot_run import run_stage
from workbench.runner.plan_run import plan_run

STEPS = {
    "full_precision": StepCosts((1, 4), (0.012, 0.016), 0.0004),
    "ternary": StepCosts((1, 4), (0.005, 0.008), 0.0003),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Of a load that was made for real and arms whose steps are known; the ternary replica takes
    1.3 times as long in service as alone, and 2 ms to take a request in."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(fleet_module, "REQUESTS", 600)
    resolved = resolve("workbench:smoke", ["report.cost.assumed_power_w=300"])
    run_stage("profile_load", resolved)
    made = open_run(resolved)
    blocks = pd.DataFrame([
        {"block": block, "order": 0, "arm": arm, "class": f"batch_{batch}", "batch": batch,
         "phase": phase, "seconds": seconds, "tokens": tokens, "sequences": batch}
        for block in range(4) for arm, steps in STEPS.items() for batch in (1, 4)
        for phase, seconds, tokens in (("prefill", 100 * steps.prompt_s, 100),
                                       ("decode", 10 * steps.step_s(batch, 0), 10 * batch))
    ])  # fmt: skip
    served = ReplicaCosts("ternary", STEPS["ternary"], 4, 64, intake_s=0.002, factor=1.3)
    shape = RequestMix(pd.DataFrame({"prompt_tokens": [40, 80], "output_tokens": [8, 16]}), 1.0)
    replay = []
    for block in range(4):
        load = shape.arrivals(8.0, 40, seed=block)
        found = served.serve(load)
        replay.append(pd.DataFrame({
            "arm": "ternary", "block": block, "status": "ok", "sent_s": load.start_s,
            "first_token_s": found.first_s, "last_token_s": found.last_s,
            "prompt_tokens": load.prompt, "output_tokens": load.output,
        }))  # fmt: skip
    record = StageRecord("measure_ab", made.stage_folder("measure_ab"), facts={"device": "cpu"})
    record.folder.mkdir(parents=True)
    record.save_table("blocks", blocks)
    record.save_table("load_requests", pd.concat(replay))
    record.save()
    return made


def test_a_fleet_of_each_arm_with_its_latencies_energy_and_cost(run):
    plan = plan_run(run, [1e6, 1e9])
    assert [row.fleet.arm for row in plan.rows] == ["full_precision"] * 2 + ["ternary"] * 2
    assert [row.per_day for row in plan.rows] == [1e6, 1e9] * 2
    small, large = plan.rows[2:]
    rate = large.fleet.rate_per_s
    assert rate == pytest.approx(1000 * small.fleet.rate_per_s)
    assert large.fleet.replicas == int(np.ceil(rate / large.fleet.per_replica_per_s))
    assert large.fleet.seen.ttft_s[0.99] <= 0.5 and large.fleet.seen.tpot_s[0.99] <= 0.03
    # The fleet of the case is the simulated one, and what it draws and costs goes with it.
    assert large.case["accelerators"] == large.fleet.replicas
    assert large.case["energy_kwh"] > 900 * small.case["energy_kwh"] * 0.5
    assert large.case["year"] == pytest.approx(
        large.case["per_1k_requests"] * 365e9 / 1000, rel=1e-6
    )
    assert plan.rows[1].fleet.replicas > large.fleet.replicas, "its steps take longer"


def test_the_replay_says_what_serving_adds_and_whether_the_simulation_holds(run):
    plan = plan_run(run, [1e6])
    full, ternary = plan.replicas
    assert full.fitted == 0 and ternary.fitted == 160
    assert ternary.factor == pytest.approx(1.3, rel=0.05)
    assert {check.arm for check in plan.checks} == {"ternary"}
    text = "\n".join(plan.lines())
    assert "6 of 6 quantiles within 10%" in text
    assert "full_precision: no replay of enough requests" in text


def test_the_command_prints_the_plan_and_writes_its_rows(run, monkeypatch, capsys, tmp_path):
    out = tmp_path / "plan.jsonl"
    words = ["workbench", "plan", run.name, "--requests-per-day", "1e7", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, "--set", "report.cost.assumed_power_w=600"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "10,000,000" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["arm"] for row in rows] == ["full_precision", "ternary"]
    assert {row["kind"] for row in rows} == {"modelled"}
    before = plan_run(run, [1e7]).rows[1].case["energy_kwh"]
    assert rows[1]["energy_kwh"] > 1.5 * before, "twice the power"


def test_a_number_that_is_no_load_and_a_run_without_arms_are_refused(run, tmp_path):
    for wrong in (0.0, -5.0, 1e15, float("nan")):
        with pytest.raises(ConfigError, match="--requests-per-day"):
            plan_run(run, [wrong])
    empty = open_run(resolve("workbench:smoke", ["seed=99"]))
    with pytest.raises(ConfigError, match="a plan needs the stages profile_load and measure_ab"):
        plan_run(empty, [1e6])
    assert replace(run).name == run.name
