"""The report with the network off: its card says what the record says, in both languages."""

from __future__ import annotations

import pytest

from workbench.figures.page import stage_figures
from workbench.report.card import verdict_card
from workbench.report.html import write_html
from workbench.wording.text import Texts

pytestmark = pytest.mark.lab


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
    page.wait_for_timeout(500)
    page.screenshot(path=pictures / f"report-{language}-{width}.png")
    context.close()
