"""Own prompts and tasks on the page and in the notebook: side by side, marked, folded, escaped."""

from __future__ import annotations

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from workbench.figures import measure_ab
from workbench.figures.page import stage_figures
from workbench.measure.own_figures import PromptFigures, task_figures, task_pairs
from workbench.records.stage_record import StageRecord
from workbench.report.html import write_html
from workbench.report.own_view import own_view
from workbench.widgets.choices import choices
from workbench.widgets.view import View
from workbench.wording.text import Texts

HOSTILE = "<script>alert('x')</script>"
ARMS = ("full_precision", "ternary")


def prompts_table() -> pd.DataFrame:
    """Three prompts: a hostile one, and two whose checks fail in one arm, one with long answers."""
    rows = []
    for prompt, text, kept in (
        ("a", f"{HOSTILE} & 1 < 2", None), ("b", "Capital?", True), ("c", "Tell", True)
    ):  # fmt: skip
        for arm in ARMS:
            fails = kept is not None and arm == "ternary"
            answer = {"a": f"<img src=x onerror=1> {arm}", "b": arm, "c": f"{arm} " * 90}[prompt]
            rows.append(
                {"prompt": prompt, "line": 1, "text": text, "arm": arm, "answer": answer,
                 "tokens": 5, "ended": "stop" if prompt == "b" else "length", "repeated": 0,
                 "grams": 2, "agreed": 4, "places": 5, "kl_nats": 0.5,
                 "accepted": None if kept is None else not fails,
                 "broken": ("json" if prompt == "c" else "contains") if fails else None,
                 "wanted": (f"Expecting {HOSTILE}" if prompt == "c" else f"Paris {HOSTILE}")
                 if fails else None}
            )  # fmt: skip
    return pd.DataFrame(rows)


def tasks_table() -> pd.DataFrame:
    return pd.DataFrame(
        {"task": "own", "row": row, "line": 1, "kind": "choice", "asked": f"Question: {HOSTILE}",
         "answer": "yes", "arm": arm, "chosen": "yes" if right else "<b>no</b>", "correct": right,
         "correct_other": True, "nats": -1.0, "bytes": 3}
        for row, arm, right in (
            ("1", "full_precision", True), ("1", "ternary", False),
            ("2", "full_precision", True), ("2", "ternary", True),
        )
    )  # fmt: skip


def with_own(record: StageRecord) -> StageRecord:
    prompts, tasks = prompts_table(), tasks_table()
    pairs = task_pairs(tasks, "full_precision")
    for name, table in (("prompts", prompts), ("tasks", tasks), ("task_pairs", pairs)):
        record.save_table(name, table)
    record.facts["prompts_reference"] = "full_precision"
    for metric in (
        *PromptFigures("full_precision", "full_precision", 100, 0).of(prompts),
        *task_figures(tasks, pairs, {"own": "none"}),
    ):
        record.add(metric)
    return record


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> StageRecord:
    folder = tmp_path_factory.mktemp("own") / "measure_ab"
    folder.mkdir()
    return with_own(StageRecord("measure_ab", folder))


@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_page_shows_answers_side_by_side_and_runs_none_of_them(make_run, language) -> None:
    run = make_run(stages=("measure_ab",))
    with_own(run.record("measure_ab")).save()
    page = write_html(run.folder, stage_figures, language).read_text(encoding="utf-8")
    assert HOSTILE not in page and "<img src=x" not in page and "<b>no</b>" not in page
    own = BeautifulSoup(page, "html.parser").select_one("#own")
    say = Texts(language)
    assert HOSTILE in own.select_one(".asked").text
    answers = own.select(".answer")
    assert len(answers) == 6 and answers[0].select_one("pre").text.startswith("<img src=x")
    marks = [answer.select_one(".outcome") for answer in answers]
    assert [mark and mark.text for mark in marks] == [
        None, None, f"✓ {say('own.accepted')}", f"✗ {say('own.not_accepted')}",
        f"✓ {say('own.accepted')}", f"✗ {say('own.not_accepted')}",
    ]  # fmt: skip
    assert f"Paris {HOSTILE}" in answers[3].text
    # What a JSON library says is English: on another page it is marked as such.
    foreign = answers[5].select_one("[lang=en]")
    assert (foreign is None) == (say.language == "en")
    assert f"Expecting {HOSTILE}" in (foreign or answers[5]).text
    # What is long is folded, and all of it is there.
    assert answers[4].details.pre.text == "full_precision " * 90
    assert answers[0].select_one("details") is None
    (pair,) = own.select("table")[0].select("tbody tr")
    cells = [cell.text for cell in pair.select("td")]
    assert cells[:7] == ["own", say.label("arm", "ternary"), "2", "1", "0", "1", "0"]
    assert cells[8] == "1"
    assert "#own" in [link["href"] for link in BeautifulSoup(page, "html.parser").select("nav a")]


def test_a_run_without_prompts_has_no_such_section(shared_run) -> None:
    page = write_html(shared_run.folder, lambda *_: []).read_text(encoding="utf-8")
    assert 'id="own"' not in page
    assert own_view(shared_run.record("measure_ab"), Texts()) is None
    none = measure_ab.answers(shared_run.record("measure_ab"))
    assert "prompts.file" in none.text
    assert measure_ab.accuracy(shared_run.record("measure_ab")).layout.annotations


def test_the_notebook_shows_the_prompt_and_the_arms_that_are_chosen(record) -> None:
    shown = measure_ab.answers(record, "en", "b", ["ternary"])
    tree = BeautifulSoup(shown.html, "html.parser")
    (answer,) = tree.select(".answer")
    assert "✗ not accepted" in answer.text and "Capital?" in tree.text
    assert "<script" not in measure_ab.answers(record).html
    with pytest.raises(ValueError, match="'z' is none of this run's: a, b, c"):
        measure_ab.answers(record, "en", "z")
    view = View(measure_ab.answers, record, "en", {"prompt": "b", "shown_arms": ["ternary"]})
    assert view.drawn() == shown
    offered = choices(view.name, record)
    assert [choice.name for choice in offered] == ["prompt", "shown_arms"]
    assert "show(figures.answers, record, prompt='b', shown_arms=['ternary'])" in view.text(offered)


def test_accuracy_is_drawn_for_each_arm_and_task(record) -> None:
    drawn = measure_ab.accuracy(record)
    assert {trace.name for trace in drawn.data} == {"full precision", "ternary"}
    assert [list(trace.x) for trace in drawn.data] == [[1.0, 1.0], [0.0, 0.5]]
