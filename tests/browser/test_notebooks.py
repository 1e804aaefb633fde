"""Every stage's notebook in JupyterLab on a finished run: no error, all figures, living widgets."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

from workbench.roadmap import STAGES
from workbench.widgets.place import PLOTLY

_spec = importlib.util.spec_from_file_location("browser_lab", Path(__file__).with_name("lab.py"))
lab = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lab)

pytestmark = pytest.mark.lab
CONTROLS = (
    ".widget-dropdown select", ".widget-select-multiple select",
    ".widget-checkbox input", ".widget-slider .noUi-handle",
    ".widget-text input",
)  # fmt: skip
STAGE_NOTEBOOKS = [stage.notebook for stage in STAGES.values()]


def figures_in(executed: Path) -> int:
    """How many a notebook has drawn that papermill has executed."""
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return sum(PLOTLY in output.get("data", {}) for output in outputs)


def move_all(page, notebook) -> dict[str, int]:
    """Move each control once; how many there are, after how many the text to keep and after how
    many a figure was another."""
    moved = {"controls": 0, "texts": 0, "figures": 0}
    for selector in CONTROLS:
        for place in range(page.locator(selector).count()):
            control = page.locator(selector).nth(place)
            before = kept_texts(page), notebook.drawn()
            if not move(control, selector):
                continue
            moved["controls"] += 1
            lab.until(lambda before=before: kept_texts(page) != before[0], of=f"{selector} {place}")
            assert "Error: " not in "".join(kept_texts(page)), kept_texts(page)
            moved["texts"] += 1
            moved["figures"] += notebook.drawn() != before[1]
    return moved


def move(control, selector: str) -> bool:
    """Whether there was anything else to choose."""
    control.scroll_into_view_if_needed()
    if "dropdown" in selector:
        if control.locator("option").count() < 2:
            return False
        chosen = control.evaluate("box => box.selectedIndex")
        control.select_option(index=1 if chosen == 0 else 0)
    elif "multiple" in selector:
        if control.locator("option").count() < 2:
            return False
        control.select_option(index=1)
    elif "checkbox" in selector:
        control.click()
    elif "noUi" in selector:
        control.focus()
        at_end = "h => Number(h.ariaValueNow) >= Number(h.ariaValueMax)"
        key = "ArrowDown" if control.evaluate(at_end) else "ArrowUp"
        for _ in range(3):
            control.press(key)
    else:
        control.fill("smoke")
        control.press("Enter")
        return False  # a search or an address: what it changes is tested on its own
    return True


def kept_texts(page) -> list[str]:
    return page.locator(".workbench-keep").all_inner_texts()


def the_card_is_the_record_s(notebook, smoke_run, page, pictures) -> None:
    card = page.locator(".wb-card").first
    card.scroll_into_view_if_needed()
    report = smoke_run.record("report")
    assert card.get_attribute("data-state") == report.facts["verdict"]["decision"]
    assert card.locator(".wb-light").count() == len(report.table("gates"))
    first = next(c for c in notebook.cells() if c["outputs"] and "figures." in c["source"])
    assert "wb-card" in json.dumps(first["outputs"]), "before every figure"
    page.screenshot(path=pictures / "card.png")


def the_prompt_box_shows_every_arm_s_answer(notebook, smoke_run, page, pictures) -> None:
    with lab.served(smoke_run.folder) as address:
        page.locator(".widget-text input").first.fill(address)
        page.get_by_role("button", name="Ask all arms").click()
        answers = page.locator("pre", has_text=re.compile(r"\S"))
        lab.until(lambda: page.get_by_text(re.compile(r"tokens/s")).count() >= 2, 60)
        assert "Error" not in " ".join(answers.all_inner_texts())
        page.screenshot(path=pictures / "05_prompt_box.png")
        page.get_by_role("button", name="Roll back").click()
        lab.until(lambda: "full_precision" in kept_texts(page)[-2], 30)


OWN = {
    "05_deploy_rollback.ipynb": the_prompt_box_shows_every_arm_s_answer,
    "06_report.ipynb": the_card_is_the_record_s,
}
"""What else a notebook has to show, once it has run."""


@pytest.mark.parametrize("name", STAGE_NOTEBOOKS)
def test_a_stage_s_notebook_runs_and_its_widgets_move_its_figures(
    name, opened, notebooks, smoke_run, page, pictures
) -> None:
    lab.own_notebook(name, notebooks, run_folder=str(smoke_run.folder))
    notebook = opened(name)
    notebook.run_all()
    assert notebook.errors() == []
    drawn = figures_in(smoke_run.notebooks / name)
    assert len(notebook.drawn()) == drawn > 0
    lab.until(lambda: page.locator(".js-plotly-plot").count() == drawn)
    assert lab.accessibility_faults(page, lab.OUTPUTS) == []
    assert page.locator(".noUi-handle:not([aria-label])").count() == 0, "a slider has a name"
    page.screenshot(path=pictures / f"{Path(name).stem}.png")
    if name in OWN:
        OWN[name](notebook, smoke_run, page, pictures)
    moved = move_all(page, notebook)
    assert notebook.errors() == []
    assert moved["controls"] >= 2, "the picker of the run and that of the pilot, at least"
    if name[:2] in ("01", "02", "03", "04"):
        assert moved["figures"] > 0, moved
    page.screenshot(path=pictures / f"{Path(name).stem}-moved.png")


def test_runs_are_compared_and_picked(opened, notebooks, page, pictures) -> None:
    lab.own_notebook("90_compare_runs.ipynb", notebooks)
    notebook = opened("90_compare_runs.ipynb")
    notebook.run_all()
    assert notebook.errors() == []
    assert "Verdicts and headlines" in notebook.texts()
    assert lab.accessibility_faults(page, lab.OUTPUTS) == []
    page.screenshot(path=pictures / "90_compare_runs.png")
    rows = page.locator(".jp-OutputArea table").last.locator("tr")
    all_rows = rows.count()
    search = page.locator(".widget-text input").last
    search.fill("memory")
    search.press("Enter")
    lab.until(lambda: 1 < rows.count() < all_rows)
    runs = page.locator(".widget-text input").first
    runs.fill("no such run")
    runs.press("Enter")
    options = page.locator(".widget-select-multiple option")
    assert options.count() == 2, "those chosen stay in the list"
