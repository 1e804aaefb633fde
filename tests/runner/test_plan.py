"""`workbench plan`: a fleet of each arm from the records of a run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench import cli
from workbench.economics.what_if import what_if
from workbench.errors import ConfigError
from workbench.pilot.resolve import resolve
from workbench.planner import fleet as fleet_module
from workbench.planner.costs import ReplicaCosts
from workbench.planner.fleet import RequestMix
from workbench.planner.rates import replica_rates, why_not_simulated
from workbench.planner.simulation import StepCosts
from workbench.records.run import open_run
from workbench.records.stage_record import StageRecord
from workbench.report.economy import case_of
from workbench.runner.pilot_run import run_stage
from workbench.runner.plan_run import plan_run
from workbench.wording.recorded import recorded
from workbench.wording.text import Texts

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


def serve_full_precision_too(made, blocks: int = 8) -> None:
    """A replay of both arms; full precision takes 1.2 times as long in service as alone."""
    record = made.records()["measure_ab"]
    replay = record.table("load_requests")
    own = ReplicaCosts("full_precision", STEPS["full_precision"], 4, 64, intake_s=0.002, factor=1.2)
    shape = RequestMix(pd.DataFrame({"prompt_tokens": [40, 80], "output_tokens": [8, 16]}), 1.0)
    for block in range(blocks):
        load = shape.arrivals(8.0, 40, seed=block)
        found = own.serve(load)
        replay = pd.concat([replay, pd.DataFrame({
            "arm": "full_precision", "block": block, "status": "ok", "sent_s": load.start_s,
            "first_token_s": found.first_s, "last_token_s": found.last_s,
            "prompt_tokens": load.prompt, "output_tokens": load.output,
        })])  # fmt: skip
    record.save_table("load_requests", replay)
    record.save()


def test_the_report_s_fleet_is_the_plan_s(run):
    """At few and at many replicas: one rate of a replica, read by both."""
    serve_full_precision_too(run)
    plan = plan_run(run, [2e6, 6e6, 3e8])
    pilot, records = run.resolved().pilot, run.records()
    slo = pilot.profile_load.interactive_slo
    rates = replica_rates(records, slo, pilot.measure_ab.load.slots, pilot.seed)
    found = {}
    for per_day in (2e6, 6e6, 3e8):
        cost = pilot.report.cost.model_copy(update={"requests_per_day": per_day})
        case, *_ = case_of(records, cost, slo, rates)
        result = what_if(case, draws=50)
        for arm in case.arms:
            found[arm.name, per_day] = result.figure(arm.name, "accelerators").value
    planned = {(row.fleet.arm, row.per_day): row.fleet.replicas for row in plan.rows}
    assert found == planned
    assert 1 <= planned["ternary", 2e6] < 4 < planned["ternary", 3e8]
    assert planned["full_precision", 3e8] > planned["ternary", 3e8]
    assert case.simulated and "utilisation" not in case.numbers
    rate = case.numbers["replica_rate.full_precision"]
    assert rate.kind == "modelled" and "by simulation fitted to 320 requests" in rate.source
    # Full precision was replayed in eight blocks, so its rate has an interval, which is drawn.
    assert rate.lo < rate.value < rate.hi
    assert result.figure("full_precision", "accelerators_fluid").lo is not None
    said = [text for text in case.texts if text.startswith(("fleets by", "a replica of"))]
    assert said[0] == "fleets by simulation: p99 within ttft_ms 500, tpot_ms 30" and len(said) == 3
    assert all(recorded(text, Texts("ru")).known for text in said)
    assert all(row.case["energy_kwh"] > 0 for row in plan.rows)


def test_an_arm_without_a_replay_leaves_the_fleets_to_the_machine_time_and_says_so(run):
    pilot, records = run.resolved().pilot, run.records()
    slo = pilot.profile_load.interactive_slo
    rates = replica_rates(records, slo, pilot.measure_ab.load.slots, pilot.seed)
    assert list(rates) == ["ternary"]
    case, *_ = case_of(records, pilot.report.cost, slo, rates)
    assert not case.simulated and "request_s.ternary" in case.numbers
    (said,) = [text for text in case.texts if text.startswith("fleets by")]
    assert said == (
        "fleets by machine time and utilisation, not by simulation: full_precision has no replay "
        "of the load with enough requests, all answered whole"
    )
    assert recorded(said, Texts("ru")).known
    serve_full_precision_too(run)
    records, late = run.records(), slo.model_copy(update={"e2e_s": 0.05})
    rates = replica_rates(records, late, pilot.measure_ab.load.slots, pilot.seed)
    assert "at no rate" in why_not_simulated(rates, ["full_precision", "ternary"])


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
