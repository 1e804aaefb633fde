"""The report with the network off: its card says what the record says, in both languages."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from workbench.figures.list_page import compare_page, runs_page
from workbench.records.run import runs_in
from workbench.report.card import FIRST, verdict_card
from workbench.wording.text import Texts

_spec = importlib.util.spec_from_file_location("browser_lab", Path(__file__).with_name("lab.py"))
lab = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lab)

pytestmark = pytest.mark.lab
TAB_STOPS = """() => [...document.querySelectorAll(
    'a[href]:not(.term), button:not(.csv), input, select, summary')]
    .filter(each => each.tabIndex >= 0 && each.checkVisibility()).length"""


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_the_card_of_the_page_is_the_record_s(
    smoke_run, report_at, browser, pictures, language, width, scheme
) -> None:
    address = report_at(language)
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    record = smoke_run.record("report")
    card = page.locator(".wb-card")
    assert card.get_attribute("data-state") == record.facts["verdict"]["decision"]
    gates = record.table("gates")
    lights = card.locator(".wb-light")
    shown = [lights.nth(k).get_attribute("data-outcome") for k in range(lights.count())]
    told = gates["outcome"].where(gates["value"].notna(), "not measured").tolist()
    assert shown == sorted(told, key=FIRST.index)
    expected = verdict_card(smoke_run, Texts(language))
    assert card.locator(".wb-sentence").inner_text() == expected.sentence
    commands = card.locator(".wb-steps code").all_inner_texts()
    assert commands == [step.command for step in expected.steps]
    assert card.bounding_box()["y"] < 900, "on the first screen"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert asked == [address]
    # The colours are the same in every language.
    assert lab.accessibility_faults(page, contrast=language == "en") == []
    assert page.evaluate(TAB_STOPS) < 60, "no bar of buttons, no footnote"
    page.wait_for_timeout(500)
    page.screenshot(path=pictures / f"report-{language}-{width}.png")
    context.close()


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_manager_s_page_is_one_sheet_and_the_rest_has_numbers(
    report_at, browser, pictures, language
) -> None:
    address = report_at(language)
    pages = {}
    for place in ("", "#summary"):
        page = browser.new_page()
        page.goto(address + place)
        page.wait_for_timeout(500)
        sheets = page.pdf(prefer_css_page_size=True, print_background=True)
        (pictures / f"report-{language}{place.replace('#', '-')}.pdf").write_bytes(sheets)
        pages[place] = len(re.findall(rb"/Type\s*/Page\b", sheets))
        page.close()
    assert pages["#summary"] == 1
    assert 10 < pages[""] < 60


VISIBLE = "rows => rows.filter(row => row.checkVisibility()).map(row => row.innerText)"
PAGES = {"runs": runs_page, "compare": compare_page}


@pytest.mark.parametrize("name", PAGES)
def test_the_lists_of_runs_and_figures_are_searched(
    finished_runs, browser, pictures, tmp_path, monkeypatch, name
) -> None:
    """Typed words leave the rows that hold them all; emptied, every row is back."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(finished_runs))
    runs = runs_in(finished_runs / "smoke")
    (tmp_path / f"{name}.html").write_text(PAGES[name](runs), encoding="utf-8")
    context = browser.new_context(offline=True, viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.goto((tmp_path / f"{name}.html").as_uri())

    def visible(rows: str = "tbody tr") -> list[str]:
        return page.locator(rows).evaluate_all(VISIBLE)

    everything = len(visible())
    words = f"{runs[-1].folder.name}" if name == "runs" else "memory ternary"
    field = page.get_by_role("searchbox")
    field.press_sequentially(words)
    found = lab.until(lambda: 0 < len(visible()) < everything and visible(), of=name)
    for row in found:
        assert all(word in row.lower() for word in words.split())
    if name == "compare":
        left = len(visible("section:has(output) tbody tr"))
        assert page.locator("section output").inner_text() == str(left)
    assert lab.accessibility_faults(page) == []
    page.screenshot(path=pictures / f"{name}-searched.png")
    field.fill("nothing has these words")
    lab.until(lambda: not visible())
    field.fill("")
    lab.until(lambda: len(visible()) == everything)
    context.close()
