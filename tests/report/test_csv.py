"""Every table of the page is saved as CSV, offline, the figures with all their digits."""

from __future__ import annotations

import csv
import io
import re

import pytest
from bs4 import BeautifulSoup

from workbench.report.html import write_html
from workbench.wording.numbers import raw


@pytest.mark.browser
@pytest.mark.parametrize("language", ["en", "ru"])
def test_every_table_is_saved_offline_with_all_digits(shared_run, browser, language) -> None:
    address = write_html(shared_run.folder, lambda *_: [], language).as_uri()
    context = browser.new_context(offline=True, accept_downloads=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    assert page.locator("button.csv").count() == page.locator("main table").count() > 5
    with page.expect_download() as saved:
        page.locator("#results button.csv").first.click()
    text = saved.value.path().read_text(encoding="utf-8-sig")
    rows = list(csv.reader(io.StringIO(text)))
    assert len({len(row) for row in rows}) == 1, "every row has the columns of the head"
    kept = {repr(m.value) for record in shared_run.records().values() for m in record.metrics}
    assert rows[0][4:6] == ["lo", "hi"]
    assert len(rows) > 2 and {row[3] for row in rows[1:]} <= kept
    assert saved.value.suggested_filename.endswith(".csv")
    assert all(url == address or url.startswith("blob:") for url in asked)
    context.close()


def test_every_table_gives_raw_values_in_as_many_columns_as_its_head(shared_run) -> None:
    """As ``reader.js`` reads them: gates, cost, economy and own prompts like the results."""
    page = BeautifulSoup(write_html(shared_run.folder, lambda *_: []).read_text(), "html.parser")
    tables = [table for table in page.select("main table") if table.thead]
    for table in tables:
        wide = len(fields(table.thead.tr))
        for row in table.select("tbody tr:not(.group)"):
            assert len(fields(row)) == wide, row
    gates = shared_run.record("report").table("gates").to_dict("records")
    shown = [fields(row) for row in page.select(".gates tbody tr")]
    for row, gate in zip(shown, gates, strict=True):
        assert row[2:4] == [gate["side"], str(gate["limit"])]
        assert row[5:8] == raw(gate["value"], gate["lo"], gate["hi"]).split("|")
    numbers = [cell for table in tables for cell in table.select("td.num")]
    plain = [cell for cell in numbers if "data-csv" not in cell.attrs]
    assert all(re.fullmatch(r"[\d,.]*|–", cell.text.strip()) for cell in plain), "counts alone"


def fields(row) -> list[str]:
    cells = row.find_all(["th", "td"], recursive=False)
    return [
        part
        for cell in cells
        for part in cell.get("data-csv", cell.text.replace("|", "")).split("|")
    ]
