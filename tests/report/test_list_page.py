"""The pages of ``workbench runs --html`` and ``workbench compare --html``."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from typer.testing import CliRunner

from workbench.cli import app
from workbench.figures.list_page import compare_page, runs_page
from workbench.records.run import all_runs
from workbench.report.compare import asked_differently, compare


def test_the_list_has_a_row_for_each_run_with_its_verdict(make_run) -> None:
    done, begun = make_run(), make_run(stages=("readiness",), seed=7)
    page = BeautifulSoup(runs_page(all_runs()), "html.parser")
    rows = {row["data-run"]: [td.text for td in row("td")] for row in page.select("tr[data-run]")}
    assert rows.keys() == {done.name, begun.name}
    decision = done.record("report").facts["verdict"]["decision"]
    assert rows[done.name][1].lower() == decision
    assert rows[begun.name][1] == "unfinished: 1 of 7 stages"
    assert rows[begun.name][0] == done.header["created"][:16].replace("T", " ")
    assert not page.select("[src], link"), "the page asks for nothing"


@pytest.mark.parametrize(("language", "said"), [("en", "2 runs"), ("ru", "2 прогона")])
def test_it_speaks_its_language(make_run, language: str, said: str) -> None:
    make_run(), make_run(seed=7)
    page = BeautifulSoup(runs_page(all_runs(), language), "html.parser")
    assert page.html["lang"] == language
    assert page.h2.text == said


def test_a_russian_comparison_has_no_english(make_run, english_of) -> None:
    runs = [make_run(), make_run(seed=7)]
    page = compare_page(runs, "ru")
    assert "настройки" in page
    names = ["sample", "linear", "block", *re.findall(r"\w+", runs[0].header["question"])]
    assert not english_of(page, *names), "\n".join(english_of(page, *names))


def test_tags_are_shown_and_make_no_other_run(make_run, tmp_path: Path) -> None:
    from workbench.pilot.resolve import resolve
    from workbench.records.run import open_run

    pilot = tmp_path / "tagged.yaml"
    pilot.write_text("name: tagged\nquestion: Is it found?\n")
    plain = open_run(resolve(pilot))
    assert open_run(resolve(pilot, ["tags=[night]"])).name == plain.name
    fresh = open_run(resolve(pilot, ["tags=[night, rack 7]"]), fresh=True)
    assert "night, rack 7" in runs_page([fresh])


def test_runs_of_different_questions_are_called_so(make_run) -> None:
    run, other = make_run(), make_run(seed=7)
    assert asked_differently(compare([run, other]), [run, other]) == []
    assert "asked different questions" not in compare_page([run, other])
    record = other.record("train_qat")
    record.save_table("heldout", pd.DataFrame({"id": ["x"], "source": ["s"], "text": ["t"]}))
    record.save()
    first = run.record("train_qat")
    first.save_table("heldout", pd.DataFrame({"id": ["y"], "source": ["s"], "text": ["t"]}))
    first.save()
    assert asked_differently(compare([run, other]), [run, other]) == ["evaluation set"]
    page = BeautifulSoup(compare_page([run, other]), "html.parser")
    assert "asked different questions (evaluation set)" in page.text
    heads = [h.text for h in page("h2")]
    assert heads[0] == "Verdicts, gates and headlines"


def test_the_commands_write_pages_and_print_their_paths(make_run, tmp_path: Path) -> None:
    run, other = make_run(), make_run(seed=7)
    listed = CliRunner().invoke(app, ["runs", "--html", "--language", "ru"])
    assert listed.exit_code == 0 and Path(listed.stdout.strip()).name == "runs.html"
    words = ["compare", run.name, other.name, "--html", "--out", str(tmp_path / "both.html")]
    compared = CliRunner().invoke(app, words)
    assert compared.exit_code == 0, compared.output
    assert run.name in (tmp_path / "both.html").read_text()
