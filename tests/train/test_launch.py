"""train.launch: how many processes, on which nodes, with what of the model; and its errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from workbench.errors import ConfigError
from workbench.pilot.renamed import with_todays_names
from workbench.pilot.resolve import resolve, resolved_from
from workbench.pilot.sections.train import Train, TrainingLaunch
from workbench.pilot.yaml_file import read_yaml
from workbench.records.run import PILOT, open_run
from workbench.train import preflight
from workbench.train.nodes import Node, node_of
from workbench.train.processes import require_devices
from workbench.train.sharded import SHARDS, require_same_strategy

HERE = {"MASTER_ADDR": "node-0", "MASTER_PORT": "29500", "NODE_RANK": "1"}


def test_the_old_key_is_a_case_of_the_new_one(tmp_path: Path) -> None:
    pilot = tmp_path / "old.yaml"
    pilot.write_text(
        "name: old\nquestion: Is it read?\ntrain: {batch_size: 4, processes: 2}\n", "utf-8"
    )
    found = resolve(pilot)
    assert found.pilot.train.launch == TrainingLaunch(processes=2, nodes=1, strategy="ddp")
    sources = {name: source for name, _, source in found.leaves()}
    assert sources["train.launch.processes"].endswith("old.yaml:3")
    assert "train.processes" not in sources
    over = resolve(pilot, ["train.processes=4"])
    assert over.pilot.train.launch.processes == 4
    assert resolve(pilot, ["train.launch.processes=1"]).pilot.train.launch.is_single
    values = {**found.values, "train": {**found.values["train"], "processes": 2}}
    assert resolved_from(values, pilot).pilot == found.pilot, "of a run's own pilot.yaml"


def test_both_names_at_once_are_refused(tmp_path: Path) -> None:
    pilot = tmp_path / "both.yaml"
    pilot.write_text(
        "name: b\nquestion: q\ntrain:\n  processes: 2\n  launch: {processes: 4}\n", "utf-8"
    )
    with pytest.raises(ConfigError, match=r"both\.yaml: train\.processes 2 is train\.launch\.proc"):
        resolve(pilot)
    kept = {"train": {"processes": 2}}
    assert with_todays_names(kept) == {"train": {"launch": {"processes": 2}}}
    assert kept == {"train": {"processes": 2}}


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (["train.launch.strategy=zero3"], "got 'zero3', allowed: 'ddp', 'fsdp' or 'hsdp'"),
        (["train.launch.processes=0"], "train.launch.processes"),
        (["train.launch.strategy=hsdp"], "both be above 1; allowed here: fsdp"),
        (["train.launch={processes: 1, nodes: 2, strategy: hsdp}"], "ddp or fsdp"),
        (["train.launch.nodes=3"], "3 processes cannot share a step's 16 sequences"),
        (
            ["train.launch.strategy=fsdp", "train.compile=true"],
            "got True, which needs whole weights",
        ),
        (["train.launch.strategy=fsdp", "train.regularisation=l2"], "or launch.strategy ddp"),
        (["train.launch.proceses=2"], "processes"),
    ],
)
def test_a_launch_that_cannot_be_is_refused_in_a_sentence(over: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("workbench:quickstart", over)
    assert words in str(caught.value)


def test_nodes_ask_for_torchruns_environment() -> None:
    two = TrainingLaunch(processes=1, nodes=2)
    assert node_of(TrainingLaunch(processes=2), {}) is None
    assert node_of(two, HERE) == Node(1, 2, "node-0", 29500)
    with pytest.raises(ConfigError, match=r"has no MASTER_ADDR, MASTER_PORT, NODE_RANK") as caught:
        node_of(two, {})
    assert "train.launch.nodes to 1" in caught.value.next_step
    for name, value in (("NODE_RANK", "2"), ("NODE_RANK", "-1"), ("MASTER_PORT", "70000")):
        with pytest.raises(ConfigError, match=re.escape(f"{name} is {value}")):
            node_of(two, {**HERE, name: value})


def test_what_run_would_refuse_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in HERE:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="the environment has no MASTER_ADDR"):
        require_devices(Train(launch={"nodes": 2}), "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"train\.launch\.processes: 4, but torch sees 2 GPUs"):
        require_devices(Train(launch={"processes": 4, "strategy": "fsdp"}), "cuda")


def test_a_checkpoint_of_the_other_kind_is_named(tmp_path: Path) -> None:
    sharded, plain = TrainingLaunch(processes=2, strategy="fsdp"), TrainingLaunch(processes=2)
    require_same_strategy(tmp_path, plain)
    with pytest.raises(ConfigError, match="strategy: fsdp, but this training has a checkpoint of"):
        require_same_strategy(tmp_path, sharded)
    (tmp_path / SHARDS).mkdir()
    require_same_strategy(tmp_path, TrainingLaunch(strategy="fsdp"))
    with pytest.raises(ConfigError, match="a checkpoint of fsdp or hsdp"):
        require_same_strategy(tmp_path, plain)


def test_a_run_goes_on_with_another_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    begun = open_run(resolve("workbench:smoke", ["train.launch.processes=2"]))
    again = open_run(resolve("workbench:smoke", ["train.launch.strategy=fsdp"]))
    assert again.folder == begun.folder
    assert again.resolved().pilot.train.launch == TrainingLaunch(strategy="fsdp")
    kept = read_yaml(begun.folder / PILOT).values
    assert kept["train"]["launch"] == {"processes": 1, "nodes": 1, "strategy": "fsdp"}
    assert open_run(resolve("workbench:smoke", ["train.steps=7"])).folder != begun.folder


def test_a_range_of_shares_of_a_weight() -> None:
    assert TrainingLaunch(processes=4, nodes=2).shards == 1
    assert TrainingLaunch(processes=4, nodes=2, strategy="fsdp").shards == 8
    assert TrainingLaunch(processes=4, nodes=2, strategy="hsdp").shards == 4
    assert Train(batch_size=8, launch={"processes": 2, "nodes": 2}).share == (2, 1)


def test_a_learned_scale_is_refused_with_shards() -> None:
    over = ["train.launch.strategy=fsdp", "model.threshold.rule=learned"]
    with pytest.raises(ConfigError, match=r"model\.threshold\.rule is learned"):
        preflight.require_trainable(resolve("workbench:smoke", over).pilot)
