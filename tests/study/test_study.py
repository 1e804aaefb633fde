"""The studies on a pilot of a few steps: what they train, find, print and never repeat."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from workbench.errors import ConfigError, StageError
from workbench.measure.paired_bootstrap import PairedBootstrap
from workbench.paths import shipped_pilots
from workbench.pilot.resolve import resolve
from workbench.records.events import Progress, follow
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.study import one_arm, recipe, size, training
from workbench.study import run as study_run
from workbench.study.arm import make_arm
from workbench.study.arms import FILE, DoJobs, KeptArms, load_arms, train_all
from workbench.study.command import study_command
from workbench.study.lines import json_lines, write_lines
from workbench.study.run import STUDIES, run_study
from workbench.study.setup import training_setup
from workbench.sweep.attempts import JobArray, JobEnd
from workbench.sweep.file import Resources
from workbench.sweep.here import Slot, run_here
from workbench.sweep.on_ray import run_on_ray

HEADLINES = {
    "recipe": "gap_over_lambda_warmup_gap",
    "parity": "parity_width_factor",
    "size": "gap_trend",
    "checkpoint": "gap_over_lambda_warmup_gap",
}


@pytest.mark.parametrize("name", STUDIES)
def test_every_line_has_its_fields_and_the_headline_comes_last(
    records: dict[str, StageRecord], name: str
) -> None:
    lines = [json.loads(line) for line in json_lines(records[name])]
    for line in lines:
        assert {"name", "value", "lo", "hi", "unit", "n", "how"} <= line.keys()
        if line["lo"] is not None:
            assert line["lo"] <= line["value"] <= line["hi"], line
    last = lines[-1]
    assert last["name"] == HEADLINES[name] == STUDIES[name].HEADLINE
    assert "arm" not in last and "seed" not in last
    assert last["value"] is None or last["n"] >= 8


def test_the_recipes_are_compared_at_equal_tokens_on_equal_documents(
    records: dict[str, StageRecord],
) -> None:
    record = records["recipe"]
    found = record.table("arms")
    names = [
        "full_precision",
        "post_training",
        "straight_through",
        "lambda_warmup",
        "distilled",
        "default",
    ]
    assert found["arm"].tolist() == names * 2
    assert set(found["training_tokens"]) == {6 * 2 * 16} and found["parameters"].nunique() == 1
    by_arm = dict(list(record.table("excerpts").groupby("arm")))
    for name in names:
        assert by_arm[name]["id"].tolist() == by_arm["full_precision"]["id"].tolist()
    gap = record.metric("gap_bits_per_byte", arm="default").value
    reference = record.metric("gap_bits_per_byte", arm="lambda_warmup").value
    share = pytest.approx(gap / reference) if reference > 0 else None
    assert record.metrics[-1].value == share
    per_seed = [record.metric(recipe.HEADLINE, seed=str(seed)) for seed in (1, 2)]
    assert all(metric is not None for metric in per_seed)
    assert record.metric("linear_bits_per_weight", arm="full_precision").value == 16
    assert 2.0 <= record.metric("linear_bits_per_weight", arm="lambda_warmup").value < 2.2


def test_a_reference_that_loses_nothing_gives_no_ratio(tmp_path: Path) -> None:
    def headline(reference_nats: float) -> Metric:
        arms = {"full_precision": 10.0, "lambda_warmup": reference_nats, "default": 12.0}
        excerpts = pd.DataFrame(
            {"arm": arm, "seed": 1, "id": f"d{i}@0", "nats": nats, "bytes": 10}
            for arm, nats in arms.items()
            for i in range(8)
        )
        record = StageRecord("study_recipe", tmp_path)
        recipe.gap_ratio(record, PairedBootstrap(excerpts), "default")
        return record.metric(recipe.HEADLINE)

    assert headline(11.0).value == pytest.approx(2.0)
    assert headline(9.0).value is None and "not defined" in headline(9.0).reason


def test_the_teacher_is_the_full_precision_arm_and_its_cost_is_told(
    records: dict[str, StageRecord],
) -> None:
    record = records["recipe"]
    assert record.metric("teacher_tokens", arm="distilled").value == 6 * 2 * 16
    passes = record.metric("teacher_time_s", arm="distilled").value
    assert 0 < passes < record.metric("training_time_s", arm="distilled").value
    assert record.metric("teacher_tokens", arm="default") is None
    with_teacher = record.metric("bits_per_byte", arm="distilled").value
    assert with_teacher != record.metric("bits_per_byte", arm="default").value


def test_widths_keep_depth_and_heads(records: dict[str, StageRecord]) -> None:
    found = records["parity"].table("arms")
    ternary = found[(found["kind"] == "ternary") & (found["seed"] == 1)].set_index("width")
    assert ternary.index.tolist() == [32, 48, 64]
    # One layer: q, k, v, o of width squared; gate, up, down of width times 1.5 width.
    assert ternary["linear_parameters"].tolist() == [
        4 * w**2 + 3 * w * w * 3 // 2 for w in (32, 48, 64)
    ]
    full = found[found["kind"] == "full_precision"].iloc[0]
    assert full["model_bytes"] == 2 * full["parameters"]
    assert (ternary["model_bytes"] < full["model_bytes"]).iloc[0]


def test_rates_fall_with_the_width_where_the_pilot_says_so(pilot_file: Path) -> None:
    resolved = resolve(pilot_file, ["study.width_lr_power=1.0", "train.ternary_lr=0.008"])
    arms = {arm.name: arm.pilot.train for arm in STUDIES["parity"].arms(resolved)}
    assert arms["full_precision_32"].lr == 5e-3
    assert arms["ternary_64"].lr == 2.5e-3 and arms["ternary_64"].ternary_lr == 4e-3


def test_every_size_has_tokens_in_proportion_to_its_parameters(
    records: dict[str, StageRecord],
) -> None:
    found = records["size"].table("arms").drop_duplicates("width").set_index("width")
    expected = (found["parameters"] * 0.01 / 32).round().clip(lower=1) * 32
    assert found["training_tokens"].tolist() == expected.tolist()
    assert found["training_tokens"].is_monotonic_increasing


def test_nothing_is_trained_twice(
    pilot_file: Path, runs: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed study goes on with the arms it lacks; another study takes the arms they share;
    a changed recipe trains only itself. An arm that another test has trained is copied."""
    trained = []
    real = training.train_study_arm

    def train(root: Path, arm: object, progress: object) -> StageRecord:
        if len(trained) == 3:
            raise StageError("killed")
        trained.append(arm.name)
        known = training.arm_folder(finished / "studies", arm)
        if known.exists():
            shutil.copytree(known, training.arm_folder(root, arm), dirs_exist_ok=True)
        return real(root, arm, progress)

    monkeypatch.setattr(training, "train_study_arm", train)
    one_seed = ["study.seeds=[1]"]
    with pytest.raises(StageError, match="killed"):
        run_study("recipe", resolve(pilot_file, one_seed))
    assert trained == ["full_precision", "straight_through", "lambda_warmup"]
    trained.clear()
    first = run_study("recipe", resolve(pilot_file, one_seed))
    assert trained == ["default", "distilled"]
    trained.clear()
    again = run_study("recipe", resolve(pilot_file, one_seed))
    assert trained == [] and again.metrics == first.metrics
    changed = [*one_seed, "train.finetune.weight_decay=0.05"]
    with pytest.raises(StageError, match="killed"):
        run_study("recipe", resolve(pilot_file, changed))
    assert trained == ["straight_through", "lambda_warmup", "default"]
    trained.clear()
    with pytest.raises(StageError, match="killed"):
        run_study("parity", resolve(pilot_file, ["study.seeds=[1, 5]"]))
    assert trained == ["ternary_48", "ternary_64", "full_precision_32"], "seed 1 shares two arms"


def in_this_process(array: JobArray, say: Callable[[str], None]) -> list[JobEnd]:
    return study_run.run_here(array, (), say)  # the one of conftest.py


def processes(*slots: Slot) -> DoJobs:
    return lambda array, say: run_here(array, slots, say)


@pytest.mark.slow
def test_arms_beside_each_other_end_as_they_do_in_this_process(
    pilot_file: Path, tmp_path: Path
) -> None:
    arms = STUDIES["recipe"].arms(resolve(pilot_file))[:2]
    found = []
    for do in (in_this_process, processes(Slot("a", "0"), Slot("b", "0"))):
        root = tmp_path / str(len(found))
        done = train_all(root, root, arms, Progress(root / "events.jsonl", "study"), do)
        found.append(pd.concat([record.table("excerpts") for record in done]))
    pd.testing.assert_frame_equal(*found)


@pytest.mark.slow
def test_a_training_that_fails_is_tried_once_more_and_its_error_keeps_its_words(
    pilot_file: Path, tmp_path: Path
) -> None:
    resolved = resolve(pilot_file, ["train.lr=1e30", "train.lr_warmup_share=0.0"])
    progress = Progress(tmp_path / "events.jsonl", "study_recipe")
    arms = STUDIES["recipe"].arms(resolved)[:1]
    with pytest.raises(StageError, match=r"1 of 1 training did not finish:\nfull_prec.*broke at"):
        train_all(tmp_path, tmp_path, arms, progress, processes(Slot("here", "0")))
    said = [event.get("text", "") for event in follow(progress.path, None)]
    assert sum("tried once more" in text for text in said) == 1
    assert sorted(log.name for log in tmp_path.glob("logs/*")) == ["0001-2.log", "0001.log"]


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint(pilot_file: Path, tmp_path: Path) -> None:
    """SIGKILL to the process of an arm in mid-training: tried once more, it ends as one that was
    left alone."""
    overrides = ["train.steps=400", "train.save_every=20"]
    found = []
    for kill in (False, True):
        root = tmp_path / str(kill)
        arms = STUDIES["recipe"].arms(resolve(pilot_file, overrides))[:1]
        checkpoints = training.arm_folder(root, arms[0]) / "checkpoints"

        def end_it(checkpoints: Path = checkpoints) -> None:
            while not any(checkpoints.glob("checkpoint-*")):
                time.sleep(0.02)
            for process in psutil.Process().children():
                if "workbench.study.one_arm" in process.cmdline():
                    process.kill()

        killer = threading.Thread(target=end_it, daemon=True)
        if kill:
            killer.start()
        progress = Progress(root / "events.jsonl", "study_recipe")
        (record,) = train_all(root, root, arms, progress, processes(Slot("here", "0")))
        found.append(record.table("excerpts"))
    said = "".join(event.get("text", "") for event in follow(progress.path, None))
    assert "was killed by signal 9" in said and "tried once more" in said
    pd.testing.assert_frame_equal(*found)


def test_what_each_failed_training_said_is_said_when_all_have_ended(
    pilot_file: Path, tmp_path: Path
) -> None:
    ended = [JobEnd(1, 0, 1, 2.0), JobEnd(2, 3, 2, 4.0, "the disk is full\n  next:    free some")]
    arms = STUDIES["recipe"].arms(resolve(pilot_file, ["study.seeds=[1]"]))[:2]
    expected = (
        "1 of 2 trainings did not finish:\nstraight_through, seed 1: the disk is full\n  next"
    )
    progress = Progress(tmp_path / "events.jsonl", "study")
    with pytest.raises(StageError, match=expected) as caught:
        train_all(tmp_path, tmp_path, arms, progress, lambda *_: ended)
    assert "same command goes on" in caught.value.next_step


def test_an_arm_that_another_process_trains_is_waited_for(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "events.jsonl", "study")
    ended = threading.Event()

    def second() -> None:
        with one_arm.alone(tmp_path / "arm", "mine, seed 1", progress):
            ended.set()

    with one_arm.alone(tmp_path / "arm", "mine, seed 1", progress):
        other = threading.Thread(target=second)
        other.start()
        assert not ended.wait(0.3)
    other.join(5)
    assert ended.is_set() and "another process trains it" in progress.path.read_text()


def test_files_changed_under_a_study_are_not_trained_on_in_its_name(
    pilot_file: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "own.jsonl"
    shutil.copy(pilot_file.parent / "corpus.jsonl", corpus)
    arm = STUDIES["recipe"].arms(resolve(pilot_file, [f"data.corpus={corpus}"]))[0]
    plan = tmp_path / FILE
    KeptArms(tmp_path, tmp_path / "events.jsonl", "study", {arm.key: arm}).save(plan)
    assert load_arms(plan).arms[arm.key] == arm
    corpus.write_text(corpus.read_text() + corpus.read_text()[:100])
    with pytest.raises(ConfigError, match="was changed since the study began"):
        one_arm.do(plan, 1)


def test_teachers_are_trained_before_their_students(pilot_file: Path, tmp_path: Path) -> None:
    turns = []

    def do(array: JobArray, say: object) -> list[JobEnd]:
        turns.append(list(array.names.values()))
        return []

    arms = STUDIES["recipe"].arms(resolve(pilot_file, ["study.seeds=[1]"]))
    (student,) = (arm for arm in arms if arm.name == "distilled")
    train_all(tmp_path, tmp_path, [student], Progress(tmp_path / "events.jsonl", "study"), do)
    assert turns == [["teacher, seed 1"], ["distilled, seed 1"]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray's own child
def test_a_training_on_ray_ends_as_it_does_in_this_process(
    pilot_file: Path, tmp_path: Path
) -> None:
    """A task of a local cluster."""
    pytest.importorskip("ray")
    arms = STUDIES["recipe"].arms(resolve(pilot_file))[:1]
    found = []
    for do in (in_this_process, lambda array, say: run_on_ray(array, Resources(), say)):
        root = tmp_path / str(len(found))
        progress = Progress(root / "events.jsonl", "study")
        (record,) = train_all(root, root, arms, progress, do)
        found.append(record.table("excerpts"))
    pd.testing.assert_frame_equal(*found)


def test_the_kept_lines_say_where_they_come_from(
    records: dict[str, StageRecord], tmp_path: Path
) -> None:
    path = tmp_path / "results" / "study-size.jsonl"
    write_lines(path, records["size"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == len(json_lines(records["size"]))
    assert all(row["commit"] and row["machine"] and row["corpus"] == "corpus.jsonl" for row in rows)
    assert {row["date"] for row in rows} == {records["size"].started[:10]}


def test_the_command_prints_the_lines(
    pilot_file: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(finished))
    lines: list[str] = []
    study_command("size", pilot_file, ["study.seeds=[1]"], jobs=1, say=lines.append)
    assert json.loads(lines[-1])["name"] == size.HEADLINE


@pytest.mark.parametrize(
    ("name", "override", "expected"),
    [
        ("recipes", "study.seeds=[1]", "did you mean recipe"),
        ("recipe", "study.recipe.arms.mine.train.stepz=3", "study arm mine"),
        ("recipe", "study.recipe.arms.mine.data.corpus=x", "arms differ in"),
        ("recipe", "train.optimizer=adamw_torhc", "did you mean adamw_torch"),
        ("parity", "study.parity.widths=[32, 40, 48]", "multiples of 16"),
        ("size", "study.size.widths=[32, 48]", "study.size.widths"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    pilot_file: Path, runs: Path, name: str, override: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        run_study(name, resolve(pilot_file, [override]))
    assert not (runs / "studies").exists()


def test_a_checkpoint_brings_its_tokenizer_to_the_study(pilot_file: Path, tmp_path: Path) -> None:
    tokens = {f"<{i}>": i for i in range(4)}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(tokens, "<0>")))
    made.add_special_tokens({"bos_token": "<1>", "eos_token": "<2>"})
    made.save_pretrained(tmp_path / "ours")
    checkpoint = f"model.checkpoint={tmp_path / 'ours'}"
    plain, own = (
        STUDIES["recipe"].arms(resolve(pilot_file, sets))[0]
        for sets in ([], [checkpoint, "model.overrides={}"])
    )
    assert own.data_key != plain.data_key
    progress = Progress(tmp_path / "events.jsonl", "study")
    assert len(training_setup(own, tmp_path / "setup", progress).tokenizer) == 4


def test_a_checkpoint_is_judged_as_it_came_and_the_recipe_at_its_own_rate(
    records: dict[str, StageRecord],
) -> None:
    record = records["checkpoint"]
    found = record.table("arms").drop_duplicates("arm").set_index("arm")
    assert found.index.tolist() == [
        "checkpoint", "post_training", "lambda_warmup", "rotation", "pull", "default",
    ]  # fmt: skip
    assert found.loc["checkpoint", "training_tokens"] == 0
    trained = found.loc[["lambda_warmup", "rotation", "pull", "default"]]
    assert set(trained["training_tokens"]) == {6 * 2 * 16}, "those of the sweep are not among them"
    assert found.loc["default", "rate"] in (1e-3, 5e-3)
    assert found.loc["lambda_warmup", "teacher_tokens"] != found.loc["default", "teacher_tokens"]
    assert record.metric("gap_bits_per_byte", arm="checkpoint") is None
    for arm in ("rotation", "pull"):
        bits = {a: record.metric("bits_per_byte", arm=a).value for a in (arm, "default")}
        over = record.metric("loss_over_recipe_bits_per_byte", arm=arm).value
        assert over == pytest.approx(bits[arm] - bits["default"], abs=1e-9)
    seeds = record.table("excerpts").query("arm == 'checkpoint'").groupby("seed")["nats"]
    assert seeds.sum().nunique() == 1, "nothing of it depends on a seed"


def test_without_a_checkpoint_the_study_says_what_it_is_about(pilot_file: Path, runs: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint is null"):
        run_study("checkpoint", resolve(pilot_file))


def test_an_arm_with_another_way_to_ternary_weights_does_not_start_compensated(
    tmp_path: Path,
) -> None:
    (tmp_path / "ours").mkdir()
    checkpoint = f"model.checkpoint={tmp_path / 'ours'}"
    resolved = resolve(shipped_pilots() / "study_checkpoint.yaml", [checkpoint])
    assert resolved.pilot.train.compensated_start.sequences == 64

    def arm(values: dict) -> tuple[int, float]:
        train = make_arm(resolved, "own", "ternary", 1, values).pilot.train
        return train.compensated_start.sequences, train.threshold.share

    assert arm({"train": {"regularisation": "pull"}}) == (64, 0.0)
    assert arm({"model": {"threshold": {"rotation": 512}}}) == (64, 0.0)
    assert arm({"train": {"threshold": {"share": 0.2}}}) == (0, 0.2)
    assert arm({"model": {"threshold": {"rule": "learned"}}}) == (0, 0.1)
    assert arm({"train": {"compensated_start": {"sequences": 8}}}) == (8, 0.0)
    assert arm({"train": {"compensated_start": {"sequences": 0}}}) == (0, 0.0)
