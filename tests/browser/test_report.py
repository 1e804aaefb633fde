"""The report with the network off: its card says what the record says, in both languages."""

from __future__ import annotations

import re

import pytest

from workbench.figures.page import stage_figures
from workbench.report.card import verdict_card
from workbench.report.html import write_html
from workbench.wording.text import Texts

pytestmark = pytest.mark.lab
TAB_STOPS = """() => [...document.querySelectorAll(
    'a[href]:not(.term), button:not(.csv), input, select, summary')]
    .filter(each => each.tabIndex >= 0 && each.checkVisibility()).length"""


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_the_card_of_the_page_is_the_record_s(
    smoke_run, browser, pictures, language, width, scheme
) -> None:
    address = write_html(smoke_run.folder, stage_figures, language).as_uri()
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
    assert shown == told
    expected = verdict_card(smoke_run, Texts(language))
    assert card.locator(".wb-sentence").inner_text() == expected.sentence
    commands = card.locator(".wb-steps code").all_inner_texts()
    assert commands == [step.command for step in expected.steps]
    assert card.bounding_box()["y"] < 900, "on the first screen"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert asked == [address]
    assert accessibility_faults(page) == []
    assert page.evaluate(TAB_STOPS) < 60, "no bar of buttons, no footnote"
    page.wait_for_timeout(500)
    page.screenshot(path=pictures / f"report-{language}-{width}.png")
    context.close()


def accessibility_faults(page) -> list[str]:
    """What axe-core calls serious or worse, with the first place of each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [
        f"{fault['id']}: {fault['nodes'][0]['html']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_manager_s_page_is_one_sheet_and_the_rest_has_numbers(
    smoke_run, browser, pictures, language
) -> None:
    address = write_html(smoke_run.folder, stage_figures, language).as_uri()
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
