"""Pilot files: YAML 1.2, extends, overrides, and all problems at once with file and line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.paths import runs_root
from workbench.pilot.reference import reference
from workbench.pilot.resolve import path_fields, resolve
from workbench.pilot.spec import Pilot

SHIPPED = sorted((Path(__file__).parents[2] / "pilots").glob("*.yaml"))
FETCHED = {"smollm2": [f"model.checkpoint={Path(__file__).parent}"]}
"""What `make` fetches for a pilot first: any folder in its place."""
MINIMAL = "# Question\n# Command\nname: one\nquestion: does it resolve?\n"


def write(folder: Path, text: str, name: str = "pilot.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_pilots_resolve_and_begin_with_question_and_command(path: Path) -> None:
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# Question:")
    assert second.startswith("# Command:")
    assert resolve(path, FETCHED.get(path.stem, ())).pilot.name == path.stem


def test_yaml_is_read_by_version_1_2(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "train: {lr: 1e-4}\nmodel: {overrides: {a: off, b: 12:30}}\n")
    pilot = resolve(path).pilot
    assert pilot.train.lr == 1e-4
    assert pilot.model.overrides == {"a": "off", "b": "12:30"}


def test_every_value_remembers_where_it_came_from(tmp_path: Path) -> None:
    write(tmp_path, "name: base\nquestion: q\ntrain:\n  steps: 7\n  lr: 0.1\n", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\nname: own\ntrain:\n  lr: 0.2\n")
    resolved = resolve(path, ["train.steps=9"])
    sources = {name: (value, source) for name, value, source in resolved.leaves()}
    assert sources["train.steps"] == (9, "--set train.steps=9")
    assert sources["train.lr"][1].endswith("pilot.yaml:4")
    assert sources["question"][1].endswith("base.yaml:2")
    assert sources["train.batch_size"][1] == "default"


def test_all_problems_come_at_once_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        MINIMAL + "train:\n  stepz: 4\n  lr: fast\n  optimizer: 3\ndata:\n  corpus: absent.txt\n",
    )
    text = problems(path)
    assert "pilot.yaml:6: train.stepz: unknown key; did you mean steps?" in text
    assert "pilot.yaml:7: train.lr: got 'fast', allowed: a number" in text
    assert "pilot.yaml:8: train.optimizer: got 3, allowed: text" in text
    assert "pilot.yaml:10: data.corpus: no such file or folder" in text


def test_free_maps_take_finite_numbers_only_and_name_the_line(tmp_path: Path) -> None:
    model = "model:\n  overrides:\n    a: {b: .nan}\n    c: [1.0,\n      .inf]\n"
    study = "study: {recipe: {arms: {one: {train: {lr: .inf}}}}}\n"
    text = problems(write(tmp_path, MINIMAL + model + study))
    assert "pilot.yaml:7: model.overrides.a.b: got nan: input should be a finite number" in text
    assert "pilot.yaml:9: model.overrides.c.1: got inf: input should be a finite" in text
    assert "pilot.yaml:10: study.recipe.arms.one.train.lr: got inf: input should" in text
    assert text.count("finite number") == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr", "allowed: section.key=value"),
        ("trian.lr=1", "did you mean train?"),
        ("train.lr=off", "got 'off', allowed: a number"),
        ("train.steps=0", "greater than or equal to 1"),
        ("train.steps=2.5", "allowed: a whole number"),
        ("readiness.device=gpu", "allowed: 'auto', 'cpu' or 'cuda'"),
        ("train.lr=[1", "not valid YAML"),
        ("train.lr=2024-13-45", "not valid YAML"),
        ("train.lr=!rate 1", "not valid YAML"),
        ("train.lr=.inf", "train.lr: got inf: input should be a finite number"),
        ("report.cost.tariff_per_kwh=.nan", "tariff_per_kwh: got nan: input should be a finite"),
        ("model.overrides.eps=-.inf", "model.overrides.eps: got -inf: input should be a finite"),
        ("deploy_rollback.slots=5000", "input should be less than or equal to 4096"),
        ("deploy_rollback.queue=1e9", "allowed: a whole number"),
        ("deploy_rollback.queue=1000000000", "less than or equal to 1000000"),
        ("deploy_rollback.duration_s=1e300", "less than or equal to 604800"),
        ("deploy_rollback.hold_s=1e300", "less than or equal to 604800"),
        ("deploy_rollback.max_prompt_tokens=10000000000", "less than or equal to 1048576"),
        ("deploy_rollback.max_output_tokens=10000000000", "less than or equal to 1048576"),
        ("deploy_rollback.rollback_rule.false_alarms=1.0", "less than 1"),
        ("deploy_rollback.rollback_rule={fewest: 51}", "fewest: unknown key; allowed: "),
        ("measure_ab.batch_sizes=[1, 5000]", "give at most 4096 sequences"),
        ("none=3", "none: unknown key; allowed: name"),
        ("lr[0]=3", "lr[0]: unknown key; allowed: name"),
        ("train.none=3", "train.none: unknown key; allowed: steps"),
        ("data.corpus=~nosuchuser/x", "no home folder is known for ~nosuchuser (allowed: "),
        ("data.corpus=" + "x" * 300, "File name too long (allowed: "),
        ('data.corpus="a\\0b"', "null byte (allowed: "),
    ],
)
def test_wrong_overrides_say_what_is_allowed(tmp_path: Path, override: str, expected: str) -> None:
    text = problems(write(tmp_path, MINIMAL), override)
    assert override.partition("=")[0] in text
    assert expected in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the top level is empty"),
        ("- a\n", "allowed: a mapping of sections"),
        ("name: [1\n", "not valid YAML"),
        ("name: a\nname: b\nquestion: q\n", "duplicate key"),
        ("extends: absent.yaml\n", "pilot.yaml:1: extends: no such file"),
        ("extends: " + "x" * 300 + "\n", "pilot.yaml:1: extends: cannot be looked at"),
        ("name: a\nquestion: 2024-13-45\n", "not valid YAML: month must be"),
        ("name: a\nquestion: !!int q\n", "not valid YAML: invalid literal"),
        ("name: a\nquestion: !why q\n", "not valid YAML: !why q: tags mean nothing"),
        ("name: " + "[" * 3000, "not valid YAML: maximum recursion depth"),
        ("name: a\nquestion: q\nnone: 3\n", "pilot.yaml:3: none: unknown key; allowed: name"),
        ("name: Upper Case\nquestion: q\n", "name: got 'Upper Case'"),
        ("question: q\n", "name: missing"),
    ],
)
def test_unreadable_files_name_file_and_cause(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in problems(write(tmp_path, content))


def test_a_merged_mapping_is_read_and_its_problems_have_a_line(tmp_path: Path) -> None:
    merged = MINIMAL + "readiness: &a {threads: 2}\nmodel:\n  overrides:\n    <<: *a\n"
    assert resolve(write(tmp_path, merged)).pilot.model.overrides == {"threads": 2}
    text = problems(write(tmp_path, merged + "train:\n  <<: *a\n"))
    assert "pilot.yaml:10: train.threads: unknown key" in text


def test_a_pilot_in_nobody_s_home_is_a_wrong_pilot() -> None:
    assert "no home folder is known for ~nosuchuser" in problems(Path("~nosuchuser/pilot.yaml"))


def test_runs_in_nobody_s_home_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", "~nosuchuser/runs")
    with pytest.raises(ConfigError, match="WORKBENCH_RUNS: ~nosuchuser/runs: no home folder"):
        runs_root()


def test_a_path_in_a_closed_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "text", "corpus.txt")
    path = write(tmp_path, MINIMAL + "data: {corpus: corpus.txt}\n")

    def closed(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", closed)
    text = problems(path)
    assert "pilot.yaml:5: data.corpus: cannot be looked at: 'corpus.txt': Permission" in text


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", "text", "corpus.txt")
    write(tmp_path / "base", MINIMAL + "data: {corpus: corpus.txt}\n", "base.yaml")
    path = write(tmp_path, "extends: base/base.yaml\n")
    monkeypatch.chdir(tmp_path / "base")
    assert resolve(path).pilot.data.corpus == str(tmp_path / "base" / "corpus.txt")
    assert resolve(path, ["data.corpus=corpus.txt"]).pilot.data.corpus.endswith("base/corpus.txt")


def test_paths_in_a_section_of_many_are_found_too(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", "{}", "own.jsonl")
    write(tmp_path / "base", MINIMAL + "tasks:\n  own: {file: own.jsonl}\n", "base.yaml")
    path = write(tmp_path, "extends: base/base.yaml\ntasks: {own: {most: 3}}\n")
    assert resolve(path).pilot.tasks["own"].file == str(tmp_path / "base" / "own.jsonl")
    assert "pilot.yaml:2: tasks.other.file: no such file" in problems(
        write(tmp_path, "extends: base/base.yaml\ntasks: {other: {file: own.jsonl}}\n")
    )
    monkeypatch.chdir(tmp_path / "base")
    again = resolve(path, ["tasks.other.file=own.jsonl"]).pilot.tasks
    assert again["other"].file == again["own"].file


def test_hub_names_are_no_paths(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert resolve(path, ["model.checkpoint=hf:a/b"]).pilot.model.checkpoint == "hf:a/b"
    assert "takes no hf: name" in problems(path, "profile_load.trace=hf:a/b")


def test_equal_pilots_have_equal_digests_whatever_the_way(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "train: {lr: 0.5}\n")
    assert resolve(path).digest == resolve(path, ["train.lr=0.5"]).digest
    assert resolve(path).digest != resolve(path, ["train.lr=0.25"]).digest


def test_every_field_that_names_an_input_is_found() -> None:
    values = resolve(SHIPPED[0]).values | {"tasks": {"own": {"file": "own.jsonl"}}}
    names = {".".join(map(str, keys)) for keys, _ in path_fields(Pilot, values)}
    assert names >= {
        "profile_load.trace",
        "data.corpus",
        "data.tokenizer",
        "model.checkpoint",
        "measure_ab.meters.csv",
        "prompts.file",
        "tasks.own.file",
    }


def test_the_reference_of_fields_is_up_to_date() -> None:
    written = (Path(__file__).parents[2] / "docs" / "fields.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m workbench.pilot.reference > docs/fields.md"


def test_every_field_says_what_it_means() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    mute = [row for row in rows if row.endswith("|  |")]
    assert not mute, "give these a description in workbench/pilot/sections"
