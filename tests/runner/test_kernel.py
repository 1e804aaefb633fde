"""The kernel of a notebook is this interpreter, and how it ends is told without a traceback."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from workbench.errors import StageError
from workbench.pilot.resolve import resolve
from workbench.records.run import open_run
from workbench.runner import kernel, papermill_run, pilot_run
from workbench.runner.papermill_run import Problem, execute_with


@pytest.fixture
def quiet(capfd, caplog):
    """Nothing may be printed or logged beside what is returned: call it at the end."""

    def said() -> str:
        gc.collect()  # a task whose exception nobody asked for is reported when it goes
        out, err = capfd.readouterr()
        return out + err + caplog.text

    with caplog.at_level(logging.WARNING):
        yield said


def notebook(folder: Path, code: str) -> Path:
    """A notebook with the parameter ``given`` and one cell."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = nbformat.v4.new_code_cell("given = 0", metadata={"tags": ["parameters"]})
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [parameters, nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "tiny.ipynb")
    return folder / "tiny.ipynb"


def test_neither_jupyter_s_environment_nor_the_folders_names_decide(
    tmp_path, monkeypatch, quiet
) -> None:
    specs = tmp_path / "jupyter" / "kernels" / "python3"
    specs.mkdir(parents=True)
    argv = ["/nowhere/python", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "foreign", "language": "python"}
    (specs / "kernel.json").write_text(json.dumps(spec))
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "own.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("given = 'from the startup file of a user'")
    for name, value in {
        "JUPYTER_PATH": tmp_path / "jupyter",
        "IPYTHONDIR": tmp_path / "ipython",
        "PYTHONSTARTUP": startup,
    }.items():
        monkeypatch.setenv(name, str(value))
    source = notebook(
        tmp_path / "notebooks {team}",
        "import os, sys, workbench\nprint(given, sys.executable, workbench.__file__, os.getcwd())",
    )
    target = tmp_path / "runs {team} {0} {" / "out.ipynb"
    assert execute_with(source, target, {"given": 7}) is None
    (printed,) = nbformat.read(target, as_version=4).cells[-1].outputs
    ours = sys.modules["workbench"].__file__
    assert printed.text == f"7 {sys.executable} {ours} {source.parent}\n"
    assert quiet() == ""


def test_a_killed_kernel_is_told_by_its_signal_and_an_exit_by_its_code(tmp_path, quiet) -> None:
    source = notebook(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    problem = execute_with(source, tmp_path / "out.ipynb", {})
    assert problem.what == f"the kernel of {sys.executable} was killed by SIGKILL"
    assert "often the memory was full" in problem.cure
    code = "import os; os.write(2, b'no room\\n'); os._exit(7)"
    problem = execute_with(notebook(tmp_path, code), tmp_path / "out.ipynb", {})
    assert f"the kernel of {sys.executable} ended with exit code 7" in problem.what
    assert "memory" not in problem.cure and "--no-notebooks" in problem.cure
    assert not (tmp_path / "out.ipynb").exists()
    assert quiet() == ""


def test_a_kernel_that_cannot_start_says_why_and_of_which_interpreter(
    tmp_path, monkeypatch, quiet
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho 'ZMQError: Address already in use' >&2\nexit 1\n")
    source = notebook(tmp_path, "print(1)")
    monkeypatch.setattr(sys, "executable", str(interpreter))
    problem = execute_with(source, tmp_path / "out.ipynb", {})
    assert f"the kernel of {interpreter}, or its notebook" in problem.what
    assert "Permission denied" in problem.what
    interpreter.chmod(0o755)
    problem = execute_with(source, tmp_path / "out.ipynb", {})
    assert problem.what.startswith(f"the kernel of {interpreter} did not start: ")
    assert problem.what.endswith("exit code 1: ZMQError: Address already in use")
    assert "ipykernel --version" in problem.cure and "--no-notebooks" in problem.cure
    assert quiet() == ""


def test_an_interruption_leaves_no_traceback_and_no_kernel(tmp_path, quiet) -> None:
    started = tmp_path / "started"
    code = f"import os, time\nopen({str(started)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"

    def interrupt() -> None:
        while not (started.exists() and started.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        execute_with(notebook(tmp_path, code), tmp_path / "out.ipynb", {})
    waiting.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert quiet() == ""


def test_a_loop_that_runs_already_is_left_alone(tmp_path, quiet) -> None:
    async def beside_another_task() -> str:
        other = asyncio.create_task(asyncio.sleep(0.01, "done"))
        assert execute_with(notebook(tmp_path, "print(1)"), tmp_path / "out.ipynb", {}) is None
        return await other

    assert asyncio.run(beside_another_task()) == "done"
    assert quiet() == ""


def test_sockets_lie_where_their_path_is_short_enough(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(kernel.tempfile, "gettempdir", lambda: "/" + "x" * 100)
    with kernel.own_kernel() as own:
        assert len(str(own.folder)) < kernel.LONGEST_FOLDER
    assert not own.folder.exists()


def test_a_stage_says_what_its_kernel_died_of(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    (tmp_path / "pilot.yaml").write_text("name: short\nquestion: What did it die of?\n")
    resolved = resolve(tmp_path / "pilot.yaml")
    problem = Problem("the kernel of python was killed by SIGSEGV", "do this")
    monkeypatch.setattr(papermill_run, "execute_notebook", lambda *_: problem)
    with pytest.raises(StageError, match=r"profile_load did not finish: .* SIGSEGV\n.*do this"):
        pilot_run._notebook("profile_load", resolved, open_run(resolved))
