"""Child processes: heard, asked to end, killed where they do not, never left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from workbench.child import child, end_of_log, how_it_ended


@pytest.fixture
def module(tmp_path: Path):
    """Writes a module and names the environment in which a child finds it."""

    def write(code: str) -> dict[str, str]:
        (tmp_path / "some_child.py").write_text(code)
        return {"PYTHONPATH": str(tmp_path)}

    return write


def test_what_it_prints_is_in_the_log_and_its_end_is_known(tmp_path, module) -> None:
    environment = module("import sys; print('said', sys.argv[1]); sys.exit('and failed')")
    log = tmp_path / "log.txt"
    with child("some_child", "this", log=log, environment=environment) as process:
        process.wait(60)
    assert end_of_log(log) == "said this\n    and failed"
    assert how_it_ended(process.returncode) == "ended with code 1"


def test_it_answers_questions(tmp_path, module) -> None:
    environment = module("import sys\nfor line in sys.stdin: print(line.upper(), end='')")
    log = tmp_path / "log.txt"
    with child("some_child", log=log, environment=environment, answers=True) as process:
        process.stdin.write("what\n")
        process.stdin.flush()
        assert process.stdout.readline() == "WHAT\n"
    assert process.returncode == -signal.SIGTERM
    assert end_of_log(log) == "(it printed nothing)"


def test_one_that_does_not_end_when_asked_is_killed_whatever_was_raised(tmp_path, module) -> None:
    environment = module(
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\n"
        "print('ready')\nwhile True: time.sleep(60)"
    )
    log = tmp_path / "log.txt"
    with (
        pytest.raises(RuntimeError, match="inside"),
        child("some_child", log=log, environment=environment, stop_s=0.1) as process,
    ):
        while "ready" not in log.read_text():
            time.sleep(0.01)
        raise RuntimeError("inside")
    assert not psutil.pid_exists(process.pid)
    assert how_it_ended(process.returncode) == "was killed by signal 9 (often: the memory was full)"


def test_a_process_may_hold_as_many_files_as_the_system_lets_it() -> None:
    code = """if True:
        import resource
        from workbench.child import allow_open_files
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
        allow_open_files(200)
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        allow_open_files(100)
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    """
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["200", "200"]
