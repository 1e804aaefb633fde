"""The time of each stage, counted from what the pilot asks of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.machine.device import Device
from workbench.model.build import preset_config
from workbench.pilot.resolve import resolve
from workbench.pilot.spec import Pilot
from workbench.records.terminal import clock
from workbench.runner.forecast import Forecast
from workbench.runner.stage_times import LeastMost, Speeds, asked_in_own_terms, stage_times, told
from workbench.train.timed_step import StepTime

PARAMETERS = 100_000_000
SPEEDS = Speeds(StepTime(3.0, 4.0, "declared"), tokens=500, decode_s=0.01)
"""A token is read in 2 ms and written in 10."""
CHECKPOINT = "train.distillation.teacher=none", "train.rate_sweep.rates=[]"


def pilot_of(*words: str) -> Pilot:
    return resolve("workbench:smoke", list(words)).pilot


def times(pilot: Pilot) -> dict[str, LeastMost]:
    config = preset_config(pilot.model, 1000, 64)
    return stage_times(pilot, config, PARAMETERS, SPEEDS, asked_in_own_terms(pilot))


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    prompts, tasks = tmp_path / "prompts.jsonl", tmp_path / "tasks.jsonl"
    rows = [{"prompt": "p" * 300}] * 9 + [{"prompt": "p" * 300, "max_tokens": 100}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"question": "q" * 268, "choices": ["a" * 29, "b" * 29], "answer": 0}
    tasks.write_text(5 * (json.dumps(row) + "\n"))
    return [f"prompts.file={prompts}", "prompts.max_tokens=50", f"tasks.ours.file={tasks}"]


def test_own_prompts_and_tasks_are_counted_for_every_arm(asked: list[str]) -> None:
    plain, own = pilot_of(), pilot_of(*asked)
    found = asked_in_own_terms(own)
    assert (found.prompts, found.answer_tokens, found.questions) == (10, 550, 5)
    assert found.prompt_tokens == 10 * 100
    # "Question: ...\nAnswer:" and a space before each choice: 317 to 330 bytes, twice a question
    assert 5 * 2 * 100 < found.question_tokens < 5 * 2 * 115
    more = times(own)["measure_ab"][1] - times(plain)["measure_ab"][1]
    arms = len(own.measure_ab.own_arms)
    read = 2 * found.prompt_tokens + found.answer_tokens + found.question_tokens
    assert more == pytest.approx(arms * (read * 0.002 + 2 * 550 * 0.01))
    assert times(own)["measure_ab"][0] > times(plain)["measure_ab"][0]
    assert told(own, SPEEDS, found)["measure_ab"] == (
        "5 arms; 10 own prompts, up to 550 tokens, 5 questions of tasks"
    )
    others = {name: ends for name, ends in times(own).items() if name != "measure_ab"}
    assert others.items() <= times(plain).items()


def test_every_arm_takes_its_time() -> None:
    few, all_arms = (
        times(pilot_of(f"measure_ab.arms=[{arms}]"))["measure_ab"]
        for arms in ("full_precision,ternary", "full_precision,ternary,post_training,int8,int4")
    )
    assert few[0] < all_arms[0] and few[1] < all_arms[1]


def test_a_checkpoint_is_an_arm_more_and_its_hybrid_is_trained(tmp_path: Path) -> None:
    its_own = "train.compensated_start.sequences=0"
    own = pilot_of(f"model.checkpoint={tmp_path}", its_own, *CHECKPOINT)
    scratch = pilot_of("hybrid_plan.when=after_training", *CHECKPOINT)
    assert "checkpoint" in own.measure_ab.own_arms
    assert times(own)["measure_ab"][1] > times(scratch)["measure_ab"][1]
    assert times(own)["train_qat"][0] > times(scratch)["train_qat"][0]
    training = own.train.steps * SPEEDS.step.ternary_s
    assert times(own)["hybrid_plan"][0] > training / 2 > times(scratch)["hybrid_plan"][0]
    said = told(own, SPEEDS, asked_in_own_terms(own))["hybrid_plan"]
    assert said.startswith("with a training of the hybrid, about ") and clock(training)[0] in said


def test_a_compensated_start_reads_its_text_in_both_ternary_trainings(tmp_path: Path) -> None:
    checkpoint = f"model.checkpoint={tmp_path}"
    none, some = (
        times(pilot_of(checkpoint, f"train.compensated_start.sequences={n}", *CHECKPOINT))
        for n in (0, 1000)
    )
    assert some["train_qat"][0] > none["train_qat"][0] + 1
    assert some["hybrid_plan"][0] > none["hybrid_plan"][0] + 0.5
    assert some["measure_ab"] == none["measure_ab"]


def test_each_rate_of_a_sweep_and_each_seed_is_counted(tmp_path: Path) -> None:
    rates = "train.rate_sweep.rates=[1e-4,1e-3]"
    words = "train.distillation.teacher=none", "train.steps=1000", "train.rate_sweep.share=0.05"
    without, swept = (
        times(pilot_of(f"model.checkpoint={tmp_path}", *words, each))["train_qat"][0]
        for each in ("train.rate_sweep.rates=[]", rates)
    )
    assert swept - without == pytest.approx(2 * 50 * SPEEDS.step.ternary_s, rel=0.05)
    one, three = (times(pilot_of(f"train.seeds={n}"))["train_qat"][0] for n in (1, 3))
    assert three - one > 2 * 24 * 7


def test_a_ready_model_is_not_trained(tmp_path: Path) -> None:
    ready = pilot_of(f"model.checkpoint={tmp_path}", f"model.ternary={tmp_path}")
    assert times(ready)["train_qat"][0] < 60 < times(pilot_of())["train_qat"][0]
    assert told(ready, SPEEDS, asked_in_own_terms(ready)) == {
        "measure_ab": "5 arms", "train_qat": "nothing is trained: model.ternary",
    }  # fmt: skip


def test_layers_are_judged_one_by_one_or_by_blocks() -> None:
    by_block, by_layer = (
        times(pilot_of(f"hybrid_plan.granularity={each}"))["hybrid_plan"]
        for each in ("block", "linear")
    )
    assert by_layer[1] > 2 * by_block[1]


# What finished runs took on two cores (Intel with AMX, 2026-11-29), notebooks included, with the
# seconds a step that each recorded itself. smoke on a quiet machine; quickstart on a busy one.
FINISHED = {
    "smoke": (118.0, StepTime(0.088, 0.129, "recorded"), 512),
    "quickstart": (638.0, StepTime(0.305, 0.336, "recorded"), 2048),
}


@pytest.mark.parametrize("name", FINISHED)
def test_finished_runs_took_about_what_is_said(name: str) -> None:
    took_s, step, tokens = FINISHED[name]
    pilot = resolve(f"workbench:{name}").pilot
    config = preset_config(pilot.model, pilot.data.vocab_size, pilot.data.sequence_length)
    speeds = Speeds(step, tokens, decode_s=50e-6 * config.num_hidden_layers)
    spans = stage_times(pilot, config, 2_000_000, speeds, asked_in_own_terms(pilot))
    foreseen = Forecast(Device("cpu", ""), spans, 0, 1, 0, 1, Path(), {})
    least, most = foreseen.whole_s()
    assert least < took_s < most
    assert 1 / 1.5 < (least + most) / 2 / took_s < 1.5


def test_few_blocks_are_counted_and_many_end_by_their_budget() -> None:
    few, many = (times(pilot_of(f"measure_ab.blocks={blocks}"))["measure_ab"] for blocks in (2, 40))
    budget_s = pilot_of().measure_ab.budget_s
    assert many[1] - few[1] > budget_s and many[0] - few[0] > budget_s / 4
    waits, warns = (
        times(pilot_of(f"readiness.quiet.action={action}"))["readiness"][1]
        for action in ("wait", "warn")
    )
    assert waits - warns == pilot_of().readiness.quiet.wait_s
