"""A sweep file becomes runs, and a bad one is refused in a sentence before anything starts."""

from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.sweep.file import MOST_RUNS, read_sweep


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))

    def write(text: str, name: str = "rates.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_grid_is_every_combination_in_the_order_of_the_file(written):
    sweep = read_sweep(
        written("pilot: workbench:smoke\nvalues: {train.steps: 9}\n"
                "grid: {train.lr: [1e-3, 3e-4], seed: [1, 2]}\n")
    )  # fmt: skip
    assert sweep.name == "rates"
    assert [run.differences for run in sweep.runs] == [
        {"train.lr": lr, "seed": seed} for lr in (1e-3, 3e-4) for seed in (1, 2)
    ]
    assert [run.text for run in sweep.runs][1] == "train.lr=0.001, seed=2"
    pilots = [run.resolved.pilot for run in sweep.runs]
    assert {pilot.train.steps for pilot in pilots} == {9}
    assert [(p.train.lr, p.seed) for p in pilots] == [(1e-3, 1), (1e-3, 2), (3e-4, 1), (3e-4, 2)]
    assert len({run.identity["digest"] for run in sweep.runs}) == 4


def test_a_list_of_runs_names_files_as_seen_from_the_sweep(written, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text\n" * 50)
    (tmp_path / "elsewhere").mkdir()
    path = written(
        "pilot: workbench:smoke\nruns: [{data.corpus: texts/a.txt}, {train: {lr: 1e-3, steps: 3}}]"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    first, second = read_sweep(path).runs
    assert first.resolved.pilot.data.corpus == str(tmp_path / "texts" / "a.txt")
    assert first.identity["files"].keys() == {"data.corpus"}
    assert (second.resolved.pilot.train.lr, second.resolved.pilot.train.steps) == (1e-3, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pilot: workbench:smoke\ngrid: {}\n", "rates.yaml:2: grid: empty, so there is no run"),
        ("pilot: workbench:smoke\ngrid: {seed: []}\n", "rates.yaml:2: grid.seed: empty"),
        ("pilot: workbench:smoke\nruns: []\n", "rates.yaml:2: runs: empty"),
        ("pilot: workbench:smoke\n", "either a grid or a list of runs; got neither"),
        ("pilot: workbench:smoke\ngrid: {seed: [1]}\nruns: [{seed: 1}]\n", "got both"),
        ("pilot: workbench:smoke\nbunch: 3\n", "rates.yaml:2: bunch: unknown key"),
        ("pilot: workbench:smoke\ngrid: {train.lrr: [1]}\n", "lrr: unknown key; did you mean lr?"),
        ("pilot: workbench:smoke\ngrid: {train.lr: [fast]}\n", "got 'fast', allowed: a number"),
        ("pilot: absent.yaml\ngrid: {seed: [1]}\n", "rates.yaml:1: pilot: no such file"),
        ("pilot: workbench:smoky\ngrid: {seed: [1]}\n", "no shipped pilot has that name"),
        ("pilot: workbench:smoke\ngrid: {seed: [1, 2, 1]}\n", "runs 1 and 3 are one run (seed=1)"),
        ("pilot: workbench:smoke\ngrid: {report.language: [en, ru]}\n", "runs 1 and 2 are one run"),
        ("pilot: workbench:smoke\ngrid: {seed: [1]}\nslurm: [partition]\n", "slurm.0: got"),
        ("pilot: workbench:smoke\ngrid: {seed: [1]}\nresources: {cpus: 0}\n", "resources.cpus"),
        ("pilot: workbench:smoke\nruns: [{data.corpus: no.txt}]\n", "no such file or folder"),
    ],
)  # fmt: skip
def test_a_bad_sweep_is_refused_in_a_sentence(written, tmp_path, text, said):
    with pytest.raises(ConfigError, match="nothing was started") as refused:
        read_sweep(written(text))
    assert said in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_ten_thousand_runs_are_refused_before_one_is_made(written):
    path = written(
        f"pilot: workbench:smoke\ngrid: {{seed: {list(range(100))}, "
        f"train.steps: {list(range(1, 101))}}}\n"
    )
    with pytest.raises(ConfigError, match=r"10,000 runs") as refused:
        read_sweep(path)
    assert f"{MOST_RUNS:,}" in refused.value.allowed


def test_a_key_that_is_wrong_in_every_run_is_said_ten_times_at_most(written):
    path = written(f"pilot: workbench:smoke\ngrid: {{train.lrr: {list(range(14))}}}\n")
    with pytest.raises(ConfigError, match="and 4 more like these"):
        read_sweep(path)


def test_a_name_that_no_folder_takes_is_refused(written):
    with pytest.raises(ConfigError, match="give it a name"):
        read_sweep(written("pilot: workbench:smoke\ngrid: {seed: [1]}\n", "My Rates.yaml"))
