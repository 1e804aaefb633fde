"""The studies on a pilot of a few steps: what they train, find, print and never repeat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from workbench.errors import ConfigError, StageError
from workbench.measure.paired_bootstrap import PairedBootstrap
from workbench.paths import shipped_pilots
from workbench.pilot.resolve import resolve
from workbench.records.events import Progress
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.study import parallel, recipe, size
from workbench.study.arm import make_arm
from workbench.study.command import study_command
from workbench.study.lines import json_lines, write_lines
from workbench.study.run import STUDIES, run_study
from workbench.study.setup import training_setup

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
    real = parallel.train_study_arm

    def train(root: Path, arm: object, progress: object) -> StageRecord:
        if len(trained) == 3:
            raise StageError("killed")
        trained.append(arm.name)
        known = parallel.arm_folder(finished / "studies", arm)
        if known.exists():
            shutil.copytree(known, parallel.arm_folder(root, arm))
        return real(root, arm, progress)

    monkeypatch.setattr(parallel, "train_study_arm", train)
    one_seed = ["study.seeds=[1]"]
    with pytest.raises(StageError, match="killed"):
        run_study("recipe", resolve(pilot_file, one_seed))
    assert trained == ["full_precision", "straight_through", "lambda_warmup"]
    trained.clear()
    first = run_study("recipe", resolve(pilot_file, one_seed))
    assert trained == ["distilled", "default"]
    trained.clear()
    again = run_study("recipe", resolve(pilot_file, one_seed))
    assert trained == [] and again.metrics == first.metrics
    changed = [*one_seed, "train.finetune.weight_decay=0.05"]
    with pytest.raises(StageError, match="killed"):
        run_study("recipe", resolve(pilot_file, changed))
    assert trained == ["straight_through", "lambda_warmup", "distilled"]
    trained.clear()
    with pytest.raises(StageError, match="killed"):
        run_study("parity", resolve(pilot_file, ["study.seeds=[1, 5]"]))
    assert trained == ["ternary_48", "ternary_64", "full_precision_32"], "seed 1 shares two arms"


@pytest.mark.slow
def test_arms_beside_each_other_end_as_they_do_one_by_one(
    pilot_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["study.seeds=[1]", "study.size.tokens_per_parameter=0.005"]
    resolved = resolve(pilot_file, overrides)
    found = []
    for jobs in (1, 2):
        monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / str(jobs)))
        found.append(run_study("size", resolved, jobs=jobs).table("arms")["bits_per_byte"])
    assert found[0].equals(found[1])


def test_an_error_of_one_of_several_processes_keeps_its_words(
    pilot_file: Path, tmp_path: Path
) -> None:
    resolved = resolve(pilot_file, ["train.lr=1e30", "train.lr_warmup_share=0.0"])
    progress = Progress(tmp_path / "events.jsonl", "study_recipe")
    with pytest.raises(StageError, match="broke at step"):
        parallel.train_all(tmp_path, STUDIES["recipe"].arms(resolved)[:1], progress, jobs=2)


def test_teachers_are_trained_before_their_students(
    pilot_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []
    monkeypatch.setattr(
        parallel, "_train_in_parallel", lambda root, arms, *_: turns.append([a.name for a in arms])
    )
    arms = STUDIES["recipe"].arms(resolve(pilot_file, ["study.seeds=[1]"]))
    (student,) = (arm for arm in arms if arm.name == "distilled")
    parallel.train_all(tmp_path, [student], Progress(tmp_path / "events.jsonl", "study"), jobs=2)
    assert turns == [["teacher"], ["distilled"]]


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
