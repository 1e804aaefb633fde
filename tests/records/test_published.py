"""Runs in a store: found, compared and gone on with elsewhere; two writers; a writer killed."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import ModuleType

import pandas as pd
import pytest

from tests.records.conftest import until
from workbench.cli import app
from workbench.errors import ConfigError, StageError
from workbench.paths import runs_root
from workbench.pilot.resolve import ResolvedPilot, resolve
from workbench.records import run
from workbench.records.events import Progress
from workbench.records.published import Published, publish
from workbench.records.run import all_runs, fetch_run, find_run, open_run
from workbench.records.run_list import run_lines
from workbench.records.stage_record import StageRecord
from workbench.records.store import RunStore, store_here
from workbench.records.sweep import KeptRun, is_finished
from workbench.report.compare import compare_runs
from workbench.roadmap import STAGES
from workbench.runner.pilot_run import run_pilot, run_stage

ROOT = Path(__file__).parents[2]
a_folder = pytest.mark.parametrize("place", ["folder"], indirect=True)
"""What does not hang on the kind of store."""


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Stages that are done at once, each with a figure, a table, a model and what is kept to go on;
    their names as they are computed."""
    done: list[str] = []
    for name in STAGES:
        module = ModuleType(name)

        def work(context, name=name) -> None:
            done.append(name)
            record, folder = context.record, context.folder
            record.measured("figure", float(len(done)), "x", "counted")
            record.save_table("rows", pd.DataFrame({"n": [len(done)]}))
            for model in ("model", "checkpoints"):
                (folder / model).mkdir()
                (folder / model / "weights").write_text(f"{name} {len(done)} {os.getpid()}")
            record.artefacts["model"] = "model"
            (folder / "tokens.npy").write_text("1 2 3")
            record.facts |= {"verdict": {"decision": "go"}, "stopping_gates": []}

        module.run = work
        monkeypatch.setitem(sys.modules, f"workbench.stages.{name}", module)
    monkeypatch.setattr(
        "workbench.runner.pilot_run.write_report",
        lambda run, resolved, again=None: run.report.write_text(f"the page of {run.name}"),
    )
    return done


@pytest.fixture
def machine(place, tmp_path, monkeypatch):
    """Makes this process one of several machines of one kind that share a store: each has a runs
    folder of its own."""
    monkeypatch.setenv("WORKBENCH_STORE", place)

    def be(name: str) -> Path:
        monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / name))
        return tmp_path / name

    return be


def pilot(folder: Path, *overrides: str) -> ResolvedPilot:
    (folder / "pilot.yaml").write_text("name: trial\nquestion: does it travel?\n")
    return resolve(folder / "pilot.yaml", overrides)


def said_of(folder: Path) -> str:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return "\n".join(json.loads(line).get("text", "") for line in lines)


def test_runs_are_listed_and_compared_from_an_empty_folder(machine, made, tmp_path) -> None:
    machine("a")
    first = run_stage("train_qat", pilot(tmp_path)).folder.parents[1]
    second, _ = run_pilot(pilot(tmp_path, "seed=2"), notebooks=False)
    names = [f"trial/{first.name}", second.name]

    machine("b")
    assert {each.name for each in all_runs()} == set(names), "none of them is here"
    lines = "\n".join(run_lines(all_runs()))
    assert "1/7 stages" in lines and "go" in lines and "does it travel?" in lines
    found = compare_runs(names)
    row = found.figures[(found.figures.metric == "figure") & (found.figures.stage == "train_qat")]
    assert row[names].to_numpy().tolist() == [[1.0, 4.0]]
    mirrored = find_run(names[0])
    record = mirrored.record("train_qat")
    assert record.table("rows").n.tolist() == [1], "tables came with the name"
    with pytest.raises(StageError, match="only what was asked for is") as error:
        record.artefact("model")
    assert "workbench fetch" in error.value.next_step

    whole = fetch_run(names[0])
    assert whole.folder == runs_root() / names[0] == fetch_run(names[0]).folder
    kept = first / "stages" / "train_qat" / "model" / "weights"
    assert (whole.record("train_qat").artefact("model") / "weights").read_text() == kept.read_text()
    assert (whole.stage_folder("train_qat") / "tokens.npy").exists()
    assert not (whole.stage_folder("train_qat") / "checkpoints").exists(), "kept to go on alone"
    with pytest.raises(ConfigError, match="no run has that name"):
        find_run("nobodys")


@a_folder
def test_a_run_goes_on_elsewhere_with_what_is_finished(machine, made, tmp_path) -> None:
    machine("a")
    resolved = pilot(tmp_path)
    begun = run_stage("train_qat", resolved).folder.parents[1]

    b = machine("b")
    done, _ = run_pilot(resolved, notebooks=False)
    assert done.folder == b / "trial" / begun.name, "the same run"
    assert sorted(made) == sorted(STAGES), "each stage was computed once, on one of the machines"
    record = done.record("train_qat")
    assert (record.artefact("model") / "weights").read_text().startswith("train_qat 1 ")
    assert "taken from the store" in record.notes[-1] and begun.name in record.notes[-1]
    assert "going on" not in said_of(done.folder) and "taken from" in said_of(done.folder)

    machine("a")
    run_pilot(resolved, notebooks=False)
    assert len(made) == len(STAGES), "and what the second finished is not computed by the first"
    assert not list(tmp_path.rglob("*.taking")) + list(tmp_path.rglob("*.partial"))


@a_folder
def test_another_machine_takes_nothing_that_is_about_machines(
    machine, made, tmp_path, monkeypatch
) -> None:
    machine("a")
    run_stage("train_qat", pilot(tmp_path))
    machine("b")
    monkeypatch.setattr(run, "machine_digest", lambda: "another")
    record = run_stage("train_qat", pilot(tmp_path))
    assert made == ["train_qat"] * 2 and len(all_runs()) == 2
    assert not any("taken" in note for note in record.notes)


@a_folder
def test_a_training_is_taken_from_another_run_of_the_pilot(machine, made, tmp_path) -> None:
    machine("a")
    run_stage("train_qat", pilot(tmp_path))
    machine("b")
    run_stage("train_qat", pilot(tmp_path, "measure_ab.blocks=9"))
    assert made == ["train_qat"] and len(all_runs()) == 2


def of_one_run(machine, tmp_path, monkeypatch) -> list[Path]:
    """The folders of one run on two machines, each of which computed the same stages itself."""
    store = os.environ["WORKBENCH_STORE"]
    monkeypatch.delenv("WORKBENCH_STORE")
    resolved = pilot(tmp_path)
    a = machine("a")
    begun = open_run(resolved)
    shutil.copytree(a, tmp_path / "b")
    folders = []
    for name in ("a", "b"):
        folders.append(machine(name) / "trial" / begun.folder.name)
        for stage in ("train_qat", "hybrid_plan"):
            run_stage(stage, resolved)
    monkeypatch.setenv("WORKBENCH_STORE", store)
    return folders


def record_of(folder: Path, stage: str) -> StageRecord:
    record = StageRecord.load(folder / "stages" / stage)
    assert record
    return record


def records_in(store: RunStore) -> dict[str, Published]:
    names = [name for name in store.names("runs") if name.endswith("/record.json")]
    return {name.split("/")[4]: Published.read(store.read(name), name) for name in names}


def test_of_two_writers_one_wins_and_nothing_is_overwritten(
    machine, made, tmp_path, monkeypatch
) -> None:
    """Both have put their files there before either creates the record."""
    folders = of_one_run(machine, tmp_path, monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.rglob("stages/**/*") if path.is_file()}
    both, create = Barrier(2, timeout=60), RunStore.create

    def together(self, name, content) -> bytes:
        if name.endswith(f"train_qat/{record_of(folders[0], 'train_qat').key}/record.json"):
            both.wait()
        return create(self, name, content)

    monkeypatch.setattr(RunStore, "create", together)
    stores = [RunStore(os.environ["WORKBENCH_STORE"]) for _ in folders]

    def write(n: int) -> None:
        publish(stores[n], folders[n], Progress(folders[n] / "events.jsonl", "train_qat"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (0, 1)))
    kept = records_in(stores[0])
    (winner,) = [f for f in folders if kept["train_qat"].is_of(record_of(f, "train_qat"))]
    (other,) = set(folders) - {winner}
    assert "in the store" not in said_of(winner)
    assert f"that stays, and yours stays in {other}" in said_of(other)
    # A plan for the other's model is not put beside the winner's.
    assert "hybrid_plan is not published: it stands on train_qat" in said_of(other)
    assert kept["hybrid_plan"].is_of(record_of(winner, "hybrid_plan"))
    for stage, found in kept.items():
        assert {"model/weights", "rows.parquet", "tokens.npy"} < set(found.sizes)
        for name in found.sizes:
            there = stores[0].read(f"{found.files}/{name}")
            assert there == (winner / "stages" / stage / name).read_bytes(), "one writer's alone"
    assert before == {path: path.read_bytes() for path in before}, "both folders stay whole"

    write(folders.index(other))
    assert records_in(stores[0]) == kept, "told again, and nothing changed"


SLOW_WRITER = """
import sys, time
from pathlib import Path
from workbench.records.events import Progress
from workbench.records.published import Published, publish
from workbench.records.store import RunStore
put = RunStore.put
def slowly(self, file, name):
    put(self, file, name)
    Path(sys.argv[3]).write_text(name)
    time.sleep(60)
RunStore.put = slowly
publish(RunStore(sys.argv[1]), Path(sys.argv[2]), Progress(Path(sys.argv[2]) / "events.jsonl", "x"))
"""


def test_a_writer_killed_in_mid_upload_leaves_no_record(
    machine, made, tmp_path, monkeypatch
) -> None:
    folder, _ = of_one_run(machine, tmp_path, monkeypatch)
    place = os.environ["WORKBENCH_STORE"]
    writer = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, place, str(folder), str(tmp_path / "put")], cwd=ROOT
    )
    try:
        until((tmp_path / "put").exists, "a first file is there")
    finally:
        writer.kill()
        writer.wait()
    store = RunStore(place)
    assert store.names("files") and not records_in(store), "files, and no record that names them"
    machine("c")
    assert [each.records() for each in all_runs()] == [{}]
    run_stage("train_qat", pilot(tmp_path))
    assert made.count("train_qat") == 3, "not taken for finished"

    publish(store, folder, Progress(folder / "events.jsonl", "x"))
    assert "yours stays in" in said_of(folder), "and the one that was killed comes second"


def test_a_store_that_goes_loses_nothing_and_the_same_command_publishes(
    s3, made, tmp_path, monkeypatch, quick
) -> None:
    monkeypatch.setenv("WORKBENCH_STORE", "s3://pilots/goes")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "a"))
    resolved = pilot(tmp_path)
    module = sys.modules["workbench.stages.train_qat"]
    train = module.run

    def while_the_store_goes(context) -> None:
        train(context)
        s3.stop()

    monkeypatch.setattr(module, "run", while_the_store_goes)
    try:
        with pytest.raises(StageError, match=r"the store s3://pilots/goes did not answer for 1 s"):
            run_pilot(resolved, notebooks=False)
        with pytest.raises(StageError, match="did not answer"):  # before anything is computed
            run_pilot(resolved, notebooks=False)
    finally:
        s3.start()
    begun = open_run(resolved)
    assert list(begun.records()) == list(made) == ["readiness", "profile_load", "train_qat"]
    assert "waiting for the store s3://pilots/goes, 1 s at most" in said_of(begun.folder)
    monkeypatch.setattr(module, "run", train)
    run_pilot(resolved, notebooks=False)
    assert sorted(made) == sorted(STAGES), "nothing twice"
    assert set(records_in(store_here())) == set(STAGES)


def test_a_store_that_is_none_is_said_before_anything_is_computed(
    made, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "nowhere"))
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "a"))
    with pytest.raises(ConfigError, match="there is no folder"):
        run_pilot(pilot(tmp_path), notebooks=False)
    assert not made and not (tmp_path / "a").exists()


@a_folder
def test_a_sweep_skips_what_was_finished_elsewhere(machine, made, tmp_path) -> None:
    machine("a")
    resolved = pilot(tmp_path)
    done, _ = run_pilot(resolved, notebooks=False)
    machine("b")
    kept = KeptRun(1, {}, "", [], "trial", done.header["digest"], done.header["files"])
    found = kept.run()
    assert found.name == done.name and is_finished(found) and found.folder != done.folder


@a_folder
def test_a_damaged_store_is_named(machine, made, tmp_path) -> None:
    machine("a")
    name = run_stage("train_qat", pilot(tmp_path)).folder.parents[1].name
    store = store_here()
    (found,) = records_in(store).values()
    (tmp_path / "short").write_text("")
    store.put(tmp_path / "short", f"{found.files}/model/weights")
    machine("b")
    with pytest.raises(StageError, match=r"model/weights of the store .* has 0 bytes"):
        run_stage("train_qat", pilot(tmp_path))
    assert name in str(all_runs()[0].folder)
    with pytest.raises(StageError, match="cannot be read"):
        Published.read(b"{", "runs/x/record.json")


@a_folder
def test_what_is_forced_anew_stays_here(machine, made, tmp_path) -> None:
    machine("a")
    resolved = pilot(tmp_path)
    run_stage("train_qat", resolved)
    first = records_in(store_here())
    run_stage("train_qat", resolved, force=True)
    assert made == ["train_qat"] * 2 and records_in(store_here()) == first
    assert "yours stays in" in said_of(open_run(resolved).folder)


@a_folder
def test_a_version_that_computes_otherwise_publishes_beside_the_first(
    machine, made, tmp_path, monkeypatch
) -> None:
    machine("a")
    resolved = pilot(tmp_path)
    run_stage("train_qat", resolved)
    machine("b")
    assert len(all_runs()[0].records()) == 1
    monkeypatch.setattr("workbench.__version__", "99")
    time.sleep(1.0)  # records say when they were made by the second
    machine("a")
    newer = run_stage("train_qat", resolved)
    keys = [n.split("/")[5] for n in store_here().names("runs") if n.endswith("record.json")]
    assert len(keys) == 2 and newer.key in keys
    machine("b")
    assert find_run("trial").record("train_qat").table("rows").n.tolist() == [2], "the newer one"


@a_folder
def test_the_commands_take_a_store(place, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "a"))
    monkeypatch.setenv("WORKBENCH_STORE", "")
    app(["runs", "--store", place], standalone_mode=False)
    assert "no runs yet" in capsys.readouterr().out and os.environ["WORKBENCH_STORE"] == place
    monkeypatch.chdir(tmp_path)
    app(["runs", "--store", "shared"], standalone_mode=False)
    assert os.environ["WORKBENCH_STORE"] == str(tmp_path / "shared"), "kernels work elsewhere"
    with pytest.raises(ConfigError, match="there is no folder"):
        app(["fetch", "a", "--store", "/no/such/place"], standalone_mode=False)
