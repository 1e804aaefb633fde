"""A training that a notebook shows, and whose tab is closed: nothing of it is lost."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from workbench.records.run import runs_in
from workbench.widgets import live

_spec = importlib.util.spec_from_file_location("browser_lab", Path(__file__).with_name("lab.py"))
lab = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lab)

pytestmark = pytest.mark.lab


def test_a_closed_tab_loses_nothing_of_a_training(browser, tmp_path, pictures) -> None:
    """Closed in the middle, opened again: the whole training is there, from its first step."""
    folder, runs = tmp_path / "notebooks", tmp_path / "runs"
    name = "02_train_qat.ipynb"
    changes = ["train.steps=250", "train.seeds=1", "train.save_every=50"]
    lab.own_notebook(name, folder, pilot="workbench:smoke", overrides=changes)
    with lab.lab_server(folder, runs) as address:
        context = browser.new_context()
        first = lab.Notebook(context.new_page(), address, name)
        first.start_all()
        run = lab.until(lambda: live_run(runs), 90)
        lab.until(lambda: any(live.so_far(run).losses.values()), 90)
        context.close()
        pid = live.so_far(run).pid
        assert live.so_far(run).at_work(), "the training does not end with its tab"

        context = browser.new_context(viewport={"width": 1300, "height": 1000})
        page = context.new_page()
        second = lab.Notebook(page, address, name)
        second.interrupt()
        lab.until(
            lambda: (
                page.evaluate(
                    "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"
                )
                == "idle"
            ),
            30,
        )
        assert live.so_far(run).at_work(), "nor with an interruption of the cell"
        second.start_all()
        lab.until(lambda: second.figures() and "full precision" in second.figures()[0], 30)
        steps = json.loads(second.figures()[0])["data"][0]["x"]
        assert (steps if isinstance(steps, list) else [1])[0] <= 3, "from the beginning"
        lab.until(lambda: "left" in page.locator(".workbench-live").inner_text(), 30)
        assert live.so_far(run).pid == pid
        page.screenshot(path=pictures / "02_reopened.png")
        page.get_by_role("button", name="Stop and keep").click()
        lab.until(lambda: not live.so_far(run).at_work(), 30)
        assert live.so_far(run).state == "failed" and "interrupted" in live.so_far(run).text
        context.close()


def live_run(runs: Path):
    found = runs_in(runs / "smoke") if (runs / "smoke").is_dir() else []
    return found[-1] if found and found[-1].events.exists() else None
