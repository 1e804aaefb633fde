"""JupyterLab as a person has it before them: a server, a browser, and what the notebook holds."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

from workbench.paths import NOTEBOOKS, PROJECT

START_S = 60.0
CELLS = """() => jupyterapp.shell.currentWidget.content.widgets.map(cell => {
    const out = cell.model.type === 'code' ? cell.model.outputs.toJSON() : [];
    return {source: cell.model.sharedModel.source, outputs: out,
            state: cell.model.type === 'code' ? cell.model.executionState : 'idle',
            count: cell.model.type === 'code' ? cell.model.executionCount : 0};
})"""
DRAWN = """() => jupyterapp.shell.currentWidget.content.widgets.flatMap(
    cell => cell.model.type === 'code' ? cell.model.outputs.toJSON() : []
).map(output => output.data?.["application/vnd.plotly.v1+json"]).filter(Boolean).map(figure => {
    let digest = 0;
    for (const letter of JSON.stringify(figure)) digest = (31 * digest + letter.charCodeAt()) | 0;
    return digest;
})"""
OPENED = """async () => {
    await jupyterapp.restored;
    const panel = jupyterapp.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    panel.content.notebookConfig = {...panel.content.notebookConfig, windowingMode: 'none'};
}"""
OUTPUTS = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output"
"""What the notebook's own cells show."""
CLOSED = """async () => {
    const panel = jupyterapp.shell.currentWidget;
    await panel.sessionContext.shutdown();
    await panel.context.save();
    panel.close();
}"""


def own_notebook(name: str, folder: Path, **parameters: object) -> Path:
    """A copy of a notebook whose parameters cell has these values."""
    document = nbformat.read(NOTEBOOKS / name, as_version=4)
    cell = next(c for c in document.cells if "parameters" in c.metadata.get("tags", []))
    for key, value in parameters.items():
        cell.source = re.sub(rf"(?m)^{key} = [^#\n]*", f"{key} = {value!r}  ", cell.source)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(document, folder / name)
    return folder / name


@contextmanager
def lab_server(folder: Path, runs: Path) -> Iterator[str]:
    """A JupyterLab on ``folder``, its kernels with ``runs``; the address with its token."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    token = secrets.token_hex(16)
    paths = [str(PROJECT), str(PROJECT / "kernels"), os.environ.get("PYTHONPATH", "")]
    kept = {key: value for key, value in os.environ.items() if key != "JUPYTER_PATH"}
    home = folder.parent / "jupyter"
    environment = kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)), "WORKBENCH_RUNS": str(runs),
        "JUPYTER_CONFIG_DIR": str(home), "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_TOKEN": token,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--notebook-dir={folder}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    log = (folder.parent / "lab.log").open("wb")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api?token={token}", server)
        yield f"{address}/lab/tree/{{name}}?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


@contextmanager
def served(run: Path) -> Iterator[str]:
    """``workbench serve`` of a run; the address that it prints."""
    command = [sys.executable, "-m", "workbench.cli", "serve", str(run), "--port", "0"]
    paths = [str(PROJECT), str(PROJECT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    piped = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **piped) as server:
        try:
            said = ""
            while not (found := re.search(r"http://\S+/v1", said)):
                said = server.stdout.readline()
                assert said, "workbench serve ended at its start"
            yield found[0]
        finally:
            server.terminate()


class Notebook:
    """An open notebook in a page of the browser."""

    def __init__(self, page: Any, address: str, name: str) -> None:
        self.page, self.name = page, name
        if page.evaluate("() => !window.jupyterapp"):
            page.goto(address.format(name=name))
        else:
            page.evaluate(
                "async path => { await jupyterapp.commands.execute('docmanager:open', {path}); }",
                name,
            )
        page.wait_for_function(
            "name => window.jupyterapp?.shell?.currentWidget?.context?.path === name",
            arg=name,
            timeout=60_000,
        )
        page.evaluate(OPENED)

    def run_all(self) -> None:
        """Execute every cell, and wait for the last one."""
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")

    def start_all(self) -> None:
        """Execute every cell without waiting."""
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")

    def close(self) -> None:
        """Close its tab and end its kernel, so that the next one has the page to itself."""
        self.page.evaluate(CLOSED)

    def interrupt(self) -> None:
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:interrupt-kernel')")

    def cells(self) -> list[dict[str, Any]]:
        return self.page.evaluate(CELLS)

    def errors(self) -> list[str]:
        """Of all outputs: tracebacks, and what was written to standard error."""
        return [
            f"{output.get('ename', 'stderr')}: {output.get('evalue', output.get('text'))}"
            for cell in self.cells()
            for output in cell["outputs"]
            if output["output_type"] == "error" or output.get("name") == "stderr"
        ]

    def figures(self) -> list[str]:
        """The figures as JSON, one for each output that is one; that of a text view is its HTML."""
        return [
            json.dumps(output["data"]["application/vnd.plotly.v1+json"])
            for cell in self.cells()
            for output in cell["outputs"]
            if "application/vnd.plotly.v1+json" in output.get("data", {})
        ]

    def drawn(self) -> list[int]:
        """A digest of each figure: whether it is another now, without megabytes on the way."""
        return self.page.evaluate(DRAWN)

    def texts(self) -> str:
        """Everything that is shown as text: outputs and widgets."""
        return self.page.evaluate(
            "() => jupyterapp.shell.currentWidget.content.node.innerText"
        ) + json.dumps([cell["outputs"] for cell in self.cells()], ensure_ascii=False)


def accessibility_faults(
    page: Any, within: str | None = None, *, contrast: bool = True
) -> list[str]:
    """What axe-core calls serious or worse, with the first place of each.

    within: a selector; of a notebook the outputs alone, since the Lab around them is Jupyter's.
    contrast: of every text, which takes as long as a page is large.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = {"include": [[within]]} if within else None
    rules = {} if contrast else {"rules": {"color-contrast": {"enabled": False}}}
    found = axe.run(page, context=context, options=rules).response["violations"]
    return [
        f"{fault['id']}, {len(fault['nodes'])} times: {fault['nodes'][0]['html']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


def until(found: Any, seconds: float = 15.0, every_s: float = 0.1, of: str = "") -> Any:
    """What ``found()`` gives once it is true; AssertionError after ``seconds``."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"{of}: not within {seconds:g} s"
        time.sleep(every_s)
    return value


def _wait_for(address: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, "JupyterLab ended at its start"
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("JupyterLab does not answer")
