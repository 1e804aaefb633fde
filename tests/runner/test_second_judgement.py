"""A finished run asked in other words: judged again in its own folder, the first time kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from workbench import cli
from workbench.errors import ConfigError, GateError, StageError
from workbench.files import digest_json, read_json, write_json
from workbench.pilot.resolve import ResolvedPilot, resolve
from workbench.pilot.yaml_file import read_yaml
from workbench.records.run import all_runs, open_run
from workbench.report.compare import compare
from workbench.roadmap import STAGES
from workbench.runner.pilot_run import page_of, raise_failed_gates, run_pilot
from workbench.runner.report_again import report_again
from workbench.stages.execute import execute, finished

LOOSER = "report.gates=[{metric: bits_per_byte, at_most: 3.0}]"
BROKEN = "report.gates=[{metric: bits_per_byte, at_most: 1.0, on_fail: stop, why: later}]"
DEARER = "report.cost.tariff_per_kwh=0.5"


@pytest.fixture
def calls(monkeypatch, tmp_path: Path) -> list[str]:
    """Stages that note their name; only the report is the real one."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    made: list[str] = []
    for name in set(STAGES) - {"report"}:
        module = ModuleType(name)

        def run(context, name=name) -> None:
            made.append(name)
            if name == "measure_ab":
                labels = {"arm": "ternary", "source": "trained"}
                context.record.measured(
                    "bits_per_byte", 2.0, "bits/byte", "made up", n=9, lo=1.9, hi=2.1, **labels
                )

        module.run = run
        monkeypatch.setitem(sys.modules, f"workbench.stages.{name}", module)
    return made


def pilot(folder: Path, *overrides: str) -> ResolvedPilot:
    path = folder / "pilot.yaml"
    path.write_text(
        "name: trial\nquestion: Does it hold?\nreport:\n  gates:\n"
        "    - {metric: bits_per_byte, at_most: 2.5, why: before}\n"
    )
    return resolve(path, overrides)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def judged(calls, tmp_path):
    """A finished run, and what its first judgement left."""
    run, again = run_pilot(pilot(tmp_path), notebooks=False)
    assert again is None and len(calls) == len(STAGES) - 1
    return run, files_of(run.stage_folder("report"))


def test_other_gates_judge_again_and_compute_nothing(judged, calls, tmp_path) -> None:
    run, first = judged
    before = len(calls)
    found, again = run_pilot(pilot(tmp_path, BROKEN), notebooks=False)
    assert found.folder == run.folder and [r.name for r in all_runs()] == [run.name]
    assert len(calls) == before
    assert files_of(run.stage_folder("report")) == first
    assert run.record("report").facts["verdict"]["decision"] == "go"
    assert again.facts["verdict"]["decision"] == "no go"
    with pytest.raises(GateError, match="gate failed"):
        raise_failed_gates(run, again)
    raise_failed_gates(run)
    (note,) = again.notes
    assert "a second judgement" in note and "fixed before the run: go" in note
    page = page_of(run, again).read_text(encoding="utf-8")
    assert "A second judgement, made on" in page
    assert "later" in page and "before" in page, "both lists of gates are shown"
    assert "judgements/" in run.report.read_text(encoding="utf-8")


def test_asked_twice_it_is_judged_once(judged, tmp_path) -> None:
    run, _ = judged
    judgements = [run_pilot(pilot(tmp_path, LOOSER), notebooks=False)[1] for _ in range(2)]
    assert judgements[0].folder == judgements[1].folder
    assert [record.key for record in run.judgements()] == [judgements[0].key]


def test_the_gates_fixed_before_an_unfinished_run_judge_it_first(calls, tmp_path) -> None:
    execute("profile_load", pilot(tmp_path), run := open_run(pilot(tmp_path)))
    _, again = run_pilot(pilot(tmp_path, BROKEN), notebooks=False)
    assert calls.count("profile_load") == 1
    assert run.record("report").table("gates")["why"].tolist() == ["before"]
    assert again.table("gates")["why"].tolist() == ["later"]


def test_a_language_is_shown_and_judges_nothing(judged, tmp_path) -> None:
    run, first = judged
    _, again = run_pilot(pilot(tmp_path, "report.language=ru"), notebooks=False)
    assert again is None and run.judgements() == []
    assert files_of(run.stage_folder("report")) == first
    assert 'lang="ru"' in run.report.read_text(encoding="utf-8")


def test_report_set_judges_again_from_the_records(judged, tmp_path, monkeypatch, capsys) -> None:
    run, first = judged
    monkeypatch.setattr("workbench.records.run.machine_digest", lambda: "carried elsewhere")
    options = ["--set", "report.language=ru", "--set", DEARER]
    monkeypatch.setattr(sys, "argv", ["workbench", "report", "trial", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = capsys.readouterr()
    page = Path(said.out.strip())
    assert page.is_relative_to(run.folder / "judgements")
    assert "a second judgement" in said.err
    text = page.read_text(encoding="utf-8")
    assert 'lang="ru"' in text and "Повторное решение" in text
    assert "report.cost.tariff_per_kwh: 0.5" in text
    assert files_of(run.stage_folder("report")) == first
    assert 'lang="ru"' in run.report.read_text(encoding="utf-8"), "a reader goes between the pages"


def text_of(run, *overrides: str, **options) -> str:
    return report_again(run.name, overrides, **options).read_text(encoding="utf-8")


def test_what_was_set_stays_set(judged, capsys) -> None:
    """Russian, then another tariff, then another PUE: each time with all that was said before."""
    run, first = judged
    assert 'lang="ru"' in text_of(run, "report.language=ru")
    assert "asked" not in capsys.readouterr().err, "nothing was set before"
    dearer = text_of(run, DEARER)
    assert 'lang="ru"' in dearer and "report.cost.tariff_per_kwh: 0.5" in dearer
    assert "as it was last asked: report.language: ru;" in capsys.readouterr().err
    other = text_of(run, "report.cost.pue=1.2")
    assert 'lang="ru"' in other and "report.cost.pue: 1.2" in other
    assert "report.cost.tariff_per_kwh: 0.5" in other
    said = capsys.readouterr().err
    assert "as it was last asked: report.language: ru, report.cost.tariff_per_kwh: 0.5;" in said
    assert len(run.judgements()) == 2
    assert text_of(run) == other, "without --set it is the page of the last judgement"
    english = text_of(run, "report.language=en", "report.cost.tariff_per_kwh=0.12")
    assert 'lang="en"' in english and "tariff_per_kwh: 0.5" not in english
    assert "as it was last asked: report.cost.pue: 1.2;" in capsys.readouterr().err.split("\n")[-3]
    assert files_of(run.stage_folder("report")) == first


def test_afresh_goes_by_the_pilot_alone(judged, capsys) -> None:
    run, _ = judged
    text_of(run, "report.language=ru", DEARER)
    cheaper = text_of(run, "report.cost.pue=1.2", afresh=True)
    assert 'lang="en"' in cheaper and "report.cost.tariff_per_kwh: 0.5" not in cheaper
    text_of(run, DEARER)
    assert report_again(run.name, [], afresh=True) == run.report
    assert 'lang="en"' in run.report.read_text(encoding="utf-8")
    capsys.readouterr()
    report_again(run.name, [])
    assert "last asked" not in capsys.readouterr().err, "it was last asked by its pilot"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lr=0.5", "train decides figures, and those of this run are made; allowed: report"),
        ("report.languag=ru", "report.languag: unknown key; did you mean language?"),
        ("report.gates=[{metric: bits_per_bite, at_most: 1.0}]", "did you mean bits_per_byte?"),
        ("report", "allowed: section.key=value"),
    ],
)
def test_what_cannot_be_judged_by_is_refused(judged, override: str, says: str) -> None:
    run, first = judged
    with pytest.raises(ConfigError) as caught:
        report_again(run.name, [override])
    assert says in str(caught.value)
    assert run.judgements() == [] and files_of(run.stage_folder("report")) == first


def test_a_run_that_was_not_judged_yet_says_so(calls, tmp_path) -> None:
    run = open_run(pilot(tmp_path))
    with pytest.raises(StageError, match=r"cannot be judged again: readiness, .*\n.*\n.*go on"):
        report_again(run.name, [DEARER])


def test_the_report_stage_alone_is_a_second_judgement_too(judged, tmp_path) -> None:
    from workbench.runner.pilot_run import run_stage

    run, first = judged
    record = run_stage("report", pilot(tmp_path, LOOSER))
    assert record.folder.parent == run.folder / "judgements"
    assert files_of(run.stage_folder("report")) == first


def test_a_run_whose_header_digests_everything_is_still_found(judged, calls, tmp_path) -> None:
    """As versions before this one wrote it."""
    run, first = judged
    header = read_json(run.folder / "run.json")
    values = read_yaml(run.folder / "pilot.yaml").values
    old = {k: v for k, v in header.items() if k not in ("format", "words")}
    write_json(run.folder / "run.json", old | {"digest": digest_json(values)})
    before = len(calls)
    for overrides in ([], [LOOSER]):
        resolved = pilot(tmp_path, *overrides)
        assert open_run(resolved).folder == run.folder
        assert finished("report", resolved, open_run(resolved))
        run_pilot(resolved, notebooks=False)
    assert len(calls) == before and files_of(run.stage_folder("report")) == first


def test_a_comparison_holds_first_judgements_against_each_other(judged, tmp_path) -> None:
    run, _ = judged
    run_pilot(pilot(tmp_path, BROKEN), notebooks=False)
    other, _ = run_pilot(pilot(tmp_path, "seed=7"), notebooks=False)
    figures = compare([run, other]).figures
    assert figures.set_index("metric").loc["gates_failed", run.name] == 0
    assert json.loads((run.folder / "run.json").read_text())["format"] == 2
