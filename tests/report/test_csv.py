"""Every table of the page is saved as CSV, offline, the figures with all their digits."""

from __future__ import annotations

import csv
import io

import pytest

from workbench.report.html import write_html


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
