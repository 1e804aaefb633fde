"""The stage: a rollback under load with nothing lost, and everything recorded."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import psutil
import pytest

from workbench.errors import ConfigError, StageError
from workbench.load.piece import LengthLimits, PlannedRequest
from workbench.load.profile import LoadProfile
from workbench.pilot.resolve import resolve
from workbench.records.events import Progress, follow
from workbench.records.stage_record import StageRecord
from workbench.serve import offer, tuning
from workbench.serve.load import Load
from workbench.serve.process import ServerProcess
from workbench.serve.rehearsal import ARMS_OF_PHASE, requests_table
from workbench.serve.replay import Outcome
from workbench.stages import (
    deploy_rollback,
    deploy_rollback_record,
    deploy_rollback_tuning,
    profile_load,
)
from workbench.stages.context import StageContext

PATIENT = "deploy_rollback.max_dispatch_delay_ms=60000"
"""Of a test that reads figures on a machine that is busy with other tests."""


def context(folder: Path, arms: dict[str, Path], *overrides: str) -> StageContext:
    """The stage before it runs, after real records of the stages it reads."""
    folder.mkdir(exist_ok=True)
    path = folder / "pilot.yaml"
    path.write_text("name: trial\nquestion: does the way back work?\n")
    short = ("deploy_rollback.duration_s=2.0", "deploy_rollback.max_output_tokens=12")
    short += ("deploy_rollback.drill.budget_s=0",)
    machine = ("readiness.device=cpu", "readiness.quiet.action=warn")
    pilot = resolve(path, (*short, *machine, *overrides)).pilot

    def record(name: str, where: Path) -> StageRecord:
        where.mkdir(parents=True, exist_ok=True)
        return StageRecord(name, where)

    root = arms["hybrid"].parent
    trained = record("train_qat", folder / "train_qat")
    trained.artefacts = {
        "full_precision": str(arms["full_precision"]),
        "tokenizer": str(arms["full_precision"]),
    }
    text = "def f(x):\n    return x\n" * 50
    trained.save_table("heldout", pd.DataFrame({"id": ["a"], "source": ["s"], "text": [text]}))
    planned = record("hybrid_plan", root)
    planned.artefacts = {"hybrid": "hybrid"}
    load = record("profile_load", folder / "profile_load")
    events = folder / "events.jsonl"
    profile_load.run(StageContext(pilot, load, Progress(events, "profile_load"), {}))
    upstream = {"train_qat": trained, "hybrid_plan": planned, "profile_load": load}
    own = record("deploy_rollback", folder / "deploy_rollback")
    return StageContext(pilot, own, Progress(events, "deploy_rollback"), upstream)


def test_a_rollback_under_load_loses_nothing(arms, tmp_path) -> None:
    stage = context(tmp_path, arms, PATIENT)
    deploy_rollback.run(stage)
    record = stage.record
    requests, switches = record.table("requests"), record.table("switches")

    assert list(switches.columns) == ["time_s", "from_arm", "to_arm", "reason"]
    (switch,) = switches.itertuples()
    assert (switch.from_arm, switch.to_arm) == ("hybrid", "full_precision")
    assert switch.time_s > 0.0

    assert set(requests["status"]) == {"ok"}
    assert set(requests["arm"]) == {"hybrid", "full_precision"}
    assert (requests["output_tokens"] == requests["wanted_tokens"]).all()
    assert requests["output_tokens"].max() == 12
    late = requests[requests["sent_s"] > switch.time_s + 0.1]
    assert set(late["arm"]) == {"full_precision"}

    assert record.metric("lost_requests").value == record.metric("truncated_requests").value == 0
    assert record.metric("rollback_first_token_s").value > 0
    assert record.metric("memory_both_arms_mb").value > 50
    assert record.metric("goodput_per_s", arm="hybrid").value > 0
    # How many requests fit two seconds is the machine's affair; each phase has its figure, and
    # the quantiles have values where enough requests came.
    for name in ("ttft_ms", "e2e_ms"):
        for phase, arms_then in ARMS_OF_PHASE.items():
            for arm in arms_then:
                figure = record.metric(name, arm=arm, phase=phase, quantile="p50")
                assert figure.value > 0 if figure.value is not None else "needs 2" in figure.reason
                assert record.metric(name, arm=arm, phase=phase, quantile="p99")
    assert record.metric("replay_speedup").kind == "derived"
    assert record.metric("capacity_per_s", arm="hybrid").value > 0
    for arm in ("hybrid", "full_precision"):
        assert record.metric("capacity_over_rate", arm=arm).value > 0
        assert record.facts["carries"][arm]["answer"] in ("yes", "no", "not_measured")
        for class_ in ("interactive", "batch"):
            assert record.metric("slo_met_share", arm=arm, **{"class": class_})
    assert record.metric("cut_share").value == 1.0  # 12 tokens of output, where the load has 128
    assert any(note.startswith("cut to what the models hold") for note in record.notes)
    assert record.facts["piece"]["kind"] == "typical"
    curves = record.table("likeness").groupby("load")["figure"].unique().map(set)
    assert set(curves.index) == {"whole", "generated", "replayed"}
    assert {"gap", "gap_cv"} <= curves["replayed"] & curves["whole"] & curves["generated"]
    noise = record.table("noise")
    assert 1 <= len(noise) <= 3 and noise["kept"].all(), "stretches of a second of a replay of two"
    assert record.facts["noise"]["blocks"] == len(noise)
    assert record.metric("replayed_window_p95").value >= 0
    (command,) = record.table("drill").itertuples()
    assert command.way == "command" and command.holds and command.requests == len(requests)
    assert command.memory_mb > 50 and abs(command.memory_growth_mb) < command.memory_mb
    kinds = {event["kind"] for event in follow(tmp_path / "events.jsonl", None)}
    assert {"note", "step"} <= kinds
    assert not _servers(), "the server must be gone"


@pytest.mark.slow
def test_the_way_back_is_taken_in_every_way(arms, tmp_path) -> None:
    stage = context(
        tmp_path,
        arms,
        PATIENT,
        "deploy_rollback.drill.budget_s=300",
        "deploy_rollback.drill.way_s=2.0",
    )
    deploy_rollback.run(stage)
    record = stage.record
    drill = record.table("drill").set_index("way")
    assert list(drill.index) == ["command", "monitor", "crash", "nan", "hang", "kill", "upstream"]
    assert drill["skipped"].isna().all(), drill["skipped"].dropna().to_dict()
    assert drill["holds"].all(), drill.T
    assert (drill["failed_without_token"] == 0).all() and (drill["undeclared"] == 0).all()
    assert (drill.loc[["command", "monitor"], "truncated"] == 0).all()
    assert (drill["first_fallback_token_s"] > 0).all() and (drill["memory_mb"] > 50).all()
    assert (drill.loc[["crash", "nan", "hang", "kill"], "back_s"] > 0).all()
    for way, says in (
        ("monitor", "had no first token within"), ("crash", "LookupError"),
        ("nan", "NotFiniteError"), ("hang", "it hung"), ("kill", "signal 9"),
        ("upstream", "hybrid is out"),
    ):  # fmt: skip
        assert says in drill.loc[way, "reason"]
        assert record.metric("drill_lost_requests", way=way).value == 0


def test_the_queue_is_tuned_and_goes_on_after_a_kill(arms, tmp_path, monkeypatch) -> None:
    """A sweep of seconds over real servers; with its points kept none is measured again."""
    monkeypatch.setattr(offer, "SHORTEST_S", 0.3)
    monkeypatch.setattr(offer, "SHORTEST_IN_TARGETS", 0.0)
    tuned = context(
        tmp_path,
        arms,
        PATIENT,
        "deploy_rollback.tuning.budget_s=8.0",
        "deploy_rollback.tuning.slots=[2]",
        "deploy_rollback.tuning.batch_wait_ms=[5.0]",
        "deploy_rollback.tuning.output_tokens=[1]",
    )
    found = deploy_rollback_tuning.tuned_in_stage(tuned)
    assert not _servers(), "the server must be gone"
    assert [(each.requests, each.arm) for each in found] == [
        ("tokens_1", "full_precision"), ("tokens_1", "hybrid"),
        ("profile", "full_precision"), ("profile", "hybrid"),
    ]  # fmt: skip
    record = tuned.record
    points, searches = record.table("tuning_points"), record.table("tuning")
    # How much a budget of seconds tells is the machine's affair.
    assert len(searches) == 4 and len(points) >= 1
    assert set(points["outcome"]) <= {"held", "missed", "overloaded"}
    figures = [m for m in record.metrics if m.name == "largest_rate_per_s"]
    assert len(figures) == 4 and all(m.reason for m in figures)
    assert {"slots": "2", "batch_wait_ms": "5"}.items() <= figures[0].labels.items()
    assert record.artefact("settings").read_text() == record.facts["tuning"]["settings"]
    assert "hybrid" in record.facts["tuning"]["settings"]

    rows = tuned.folder / "tuning" / "tuning.jsonl"
    whole = rows.read_text()
    monkeypatch.setattr(tuning, "server_process", None)  # nothing is measured again
    rows.write_text(whole + '{"slots": 2, "cut of')
    again = context(tmp_path / "again", arms)
    args = (tuned.pilot, tuned.upstream, "cpu", tuned.folder / "tuning", lambda *_: None)
    assert deploy_rollback_tuning.tune(*args) == found
    assert rows.read_text() == whole
    assert deploy_rollback_tuning.tuned_in_stage(again) == []
    left_out = again.record.metric("largest_rate_over_load", arm="hybrid")
    assert "budget_s is 0" in left_out.reason


def test_the_misses_of_one_arm_are_not_the_others(arms, tmp_path) -> None:
    """14 of 14 requests of the hybrid in time, 2 of 11 of full precision, two of them lost."""
    stage = context(tmp_path, arms, "deploy_rollback.duration_s=25.0")
    rows = [
        Outcome(i, "interactive", i, i, 8, 4, "hybrid", i + 0.1, i + 0.15, i + 0.15, 4, "ok")
        for i in range(14)
    ]
    for i in range(14, 25):
        wait = 0.1 if i in (20, 21) else 0.9
        times = (i + wait, i + wait + 0.05, i + wait + 0.05)
        rows.append(Outcome(i, "interactive", i, i, 8, 4, "full_precision", *times, 4, "ok"))
    rows[14] = Outcome(14, "interactive", 14.0, 14.0, 8, 4, None, None, None, 14.1, 0, "rejected")
    shares = deploy_rollback_record._record_targets(stage, requests_table(rows), 13.5)
    assert shares["hybrid"]["interactive"].value == 1.0
    assert shares["full_precision"]["interactive"].value == pytest.approx(2 / 11)
    assert shares["hybrid"]["interactive"].n == 14
    record = stage.record
    figure = record.metric("slo_met_share", arm="hybrid", **{"class": "interactive"})
    assert figure.value == 1.0 and (figure.lo is not None or "no interval" in figure.reason)
    assert record.metric("goodput_per_s", arm="hybrid").value == pytest.approx(14 / 13.5)
    assert record.metric("goodput_per_s", arm="full_precision").value < 0.2


def test_a_replay_whose_client_was_late_is_refused(arms, tmp_path) -> None:
    """One request in a hundred may be late."""
    stage, quick = context(tmp_path / "late", arms), context(tmp_path / "quick", arms)
    rows = [
        Outcome(i, "interactive", i, i, 8, 4, "hybrid", i + 0.2, i + 0.3, i + 0.3, 4, "ok")
        for i in range(200)
    ]
    rows[0].sent_s += 0.05
    assert deploy_rollback_record._record_dispatch(quick, requests_table(rows)) is None
    for late in rows[:4]:
        late.sent_s = late.intended_s + 0.05
    requests = requests_table(rows)
    why = deploy_rollback_record._record_dispatch(stage, requests)
    assert "50 ms late (p99), allowed are 10" in why and "deploy_rollback.speedup" in why
    assert stage.record.metric("dispatch_delay_ms", quantile="p99").value is not None
    assert deploy_rollback_record._record_targets(stage, requests, 150.0, why)["hybrid"] == {}
    for name in ("goodput_per_s", "slo_met_share"):
        figure = stage.record.metric(name, arm="hybrid")
        assert (figure.value, figure.reason) == (None, why)


def test_faults_are_counted_by_kind_and_arm(arms, tmp_path) -> None:
    record = context(tmp_path, arms).record
    rows = [Outcome(i, "batch", i, i, 8, 4, "hybrid", i, i, i, 4, "ok") for i in range(10)]
    rows[3].fault, rows[4].fault = "hung", "broken_sse"
    rows += [Outcome(10, "batch", 10.0, 10.0, 8, 4, end_s=10.1, fault="refused")]
    deploy_rollback_record._record_faults(record, requests_table(rows), 9.5)

    def found(arm: str, fault: str) -> tuple[float, int]:
        figure = record.metric("failed_requests", arm=arm, fault=fault)
        return figure.value, figure.n

    assert found("hybrid", "hung") == found("hybrid", "broken_sse") == (1, 10)
    assert found("hybrid", "refused") == (0, 10)
    assert found("full_precision", "refused") == (1, 1)


def test_the_same_seed_asks_for_the_same_requests(arms, tmp_path) -> None:
    stage = context(tmp_path, arms, "deploy_rollback.speedup=3.0")
    load = Load(
        LoadProfile.from_record(stage.need("profile_load")),
        LengthLimits(20, 5),
        list(range(100)),
        seed=7,
    )
    assert load.sample(4) == load.sample(4)
    planned = load.sample(4)[2]
    assert load.prompt(planned) == load.prompt(planned)
    assert len(load.prompt(planned)) == planned.prompt_tokens <= 20


def test_a_prompt_may_be_longer_than_the_text(arms, tmp_path) -> None:
    stage = context(tmp_path, arms)
    profile = LoadProfile.from_record(stage.need("profile_load"))
    load = Load(profile, LengthLimits(50, 5), [1, 2, 3], seed=7)
    planned = PlannedRequest(0, 0.0, 50, 5, "batch", False)
    assert len(load.prompt(planned)) == 50


def test_a_server_that_dies_under_load_fails_the_stage_with_its_log(
    arms, tmp_path, monkeypatch
) -> None:
    def kill(server: ServerProcess, arm: str, reason: str) -> float:
        os.kill(server.process.pid, signal.SIGKILL)
        return 0.0

    monkeypatch.setattr(ServerProcess, "switch", kill)
    with pytest.raises(StageError, match="killed by signal 9") as caught:
        deploy_rollback.run(
            context(
                tmp_path,
                arms,
                "deploy_rollback.duration_s=10.0",
                "deploy_rollback.rollback_at=0.05",
            )
        )
    assert "server.log" in caught.value.next_step


def test_the_rehearsal_is_not_opened_to_the_network(arms, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"deploy_rollback\.host"):
        context(tmp_path, arms, "deploy_rollback.host=0.0.0.0")


def _servers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [
        child
        for child in children
        if child.status() != psutil.STATUS_ZOMBIE and "workbench.serve.main" in child.cmdline()
    ]
