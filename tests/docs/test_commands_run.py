"""Every command that README and docs show is run, on one small finished run, with its own words.

Each is given a folder with what a reader would have there: a pilot, a trace, power logs, a model.
Where the documented command takes minutes, ``SHORTER`` adds options that make it short, and says
why; one that trains or measures for long stands in ``BY_TESTS`` with the test that runs the same
function small, and what is no command of the workbench in ``ELSEWHERE``. A command that the pages
show and that is in none of them is run as it stands.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import torch

from workbench.cli import main
from workbench.measure.meters.recording import Recording, sample_row
from workbench.measure.meters.sample import Channel, Sample
from workbench.paths import PROJECT
from workbench.records.run import Run, runs_in
from workbench.serve.kept_route import route_file

_spec = importlib.util.spec_from_file_location("docs_shown", Path(__file__).with_name("shown.py"))
shown = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shown)
ROOT = shown.ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SHORTER: list[tuple[str, str, str]] = [
    (r"meter record", "--for 1s --pilot METERED.yaml", "days, and no meter is in this machine"),
    (r"meter watch", "--for 1s", "it would go on until somebody ends it"),
    (r"serve", "--port 0 --drain-notice 0", "port 8000 may be taken"),
    (r"run workbench:quickstart", "--only profile_load", "nine minutes: make pilot"),
    (
        r"run PILOT.yaml --set train.lr",
        "--only train_qat --no-notebooks",
        "the whole pilot once more",
    ),
    (r"drill", "--way monitor --way-s 0.8", "seven ways of ten seconds"),
    (r"run PILOT.yaml --force$", "--only profile_load --no-notebooks", "the same"),
]
"""Pattern of a command -> options that make it short, and what it would take without them."""
BY_TESTS = {
    r"core check": ("tests/check/test_core.py", '"core", "check"'),
    r"run PILOT.yaml --set readiness.core": ("tests/engine/test_onnxruntime_core.py", "run_probe("),
    r"run pilots/ready_ternary.yaml": ("tests/runner/test_gguf_pilot.py", "ready_ternary"),
    r"bench cpu": ("tests/bench/test_cpu.py", "bench_cpu("),
    r"bench gpu": ("tests/kernels_gpu/test_bench.py", "bench_gpu("),
    r"bench train": ("tests/bench/test_train.py", "bench_train("),
    r"stage train_qat PILOT.yaml +--set .*train.launch": (
        "tests/train/test_nodes.py",
        '"nodes": 2',
    ),
    r"bench sharded": ("tests/bench/test_sharded.py", "bench_sharded("),
    r"bench trace": ("tests/bench/test_trace.py", "bench_trace("),
    r"bench client": ("tests/bench/test_client.py", "bench_client("),
    r"study": ("tests/study/test_study.py", "study_command("),
    r"run PILOT.yaml --set train.launch.*fsdp": ("tests/train/test_sharded.py", '"fsdp"'),
    r"run PILOT.yaml --set train.launch": ("tests/train/test_processes.py", "processes"),
    r"bench replica": ("tests/serve/test_replica_bench.py", "bench_replica("),
    r"tune": ("tests/report/test_tune_command.py", "tune_run("),
    r"sweep .*--on ray": ("tests/sweep/test_on_ray.py", '"sweep"'),
    r"fetch": ("tests/records/test_published.py", "fetch_run("),
    r"(sweep|compare sweep:)": ("tests/sweep/test_runs_of_a_sweep.py", '"sweep"'),
}
"""Commands of minutes to hours -> the test that runs what stands behind them, small."""
NOT_RUN = {
    r"--install-completion": "writes into the shell's own files",
    r"bench sweep": "whole pilots, several at a time, for minutes; docs/scale.md has its rows",
}
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
MAKE = {
    "make pilot": "tests/runner/test_whole_pilot.py",
    "make PYTHON=/path/to/python3.12 pilot": "tests/runner/test_whole_pilot.py",
    "make smollm2": "tests/runner/test_gguf_pilot.py",
    "make golden": "tests/golden/test_golden.py",
    "make energy": "tests/measure/test_played_session.py",
    "make forecast": "tests/study/test_back_test.py",
    "make calibrate": "tests/measure/test_calibrate.py",
    "make soak": "tests/serve/test_soak.py",
    "make sanitize": "tests/kernels_gpu/test_interpreted.py",
    "make lab": "tests/browser/test_notebooks.py",
    "make clean": "",
    "make setup": "",  # what every other target begins with
}
"""Targets that CI does not call by name -> the test that runs what stands behind them, small."""
ELSEWHERE = {
    r"pip (download|install)|python -m venv apart": "a package index, which no test asks",
    r"lm_eval run|python -m workbench\.measure\.lm_eval_model": "tests/serve/test_lm_eval.py",
    r"guidellm run": "installed apart; docs/serving.md has what it measured",
    r"docker|useradd|systemctl|install -m|git clone": "changes the machine; the files it names are "
    "held to the code by tests/serve",
    r"(RUN|OPTIONS|TEAM_KEY)=|END$": "text of a file",
    r"export WORKBENCH_STORE=": "a bucket of the reader's own; tests/records has one played",
    r"read -rs ": "asks a person",
    r"python -m workbench\.bench\.tables": "a 3B shape for a minute; "
    "tests/bench/test_tables.py runs it small",
    r"python -m workbench\.bench\.base3": "a minute; tests/bench/test_base3.py runs it small",
    r"python -m workbench\.bench\.speculative": "two models for minutes; its rows stand in "
    "docs/performance.md, tests/engine has what it runs",
    r"python -m pytest": "tests run by make test",
    r"ray start|sbatch": "a cluster of the reader's own; tests/sweep has both played",
    r"python -m workbench\.serve\.rollback_simulation": "make calibrate",
}
MODULES = ["workbench.pilot.reference", "workbench.serve.calibration RUN"]


class Reader:
    """What a reader has: a finished run and another, and a folder to stand in. address: of a
    server that runs."""

    def __init__(self, folder: Path, run: Run, again: Run) -> None:
        self.folder, self.run, self.again = folder, run, again
        self.address = ""

    def words(self, command: str) -> list[str]:
        """With the reader's own things in the place of words in capitals."""
        names = iter([self.run.name, self.again.name])
        trained = self.run.folder / "stages" / "train_qat"
        stands_for = {
            "MODEL": str(trained / "ternary"), "MODEL_FOLDER": str(trained / "ternary"),
            "OUT": "for_others", "COMMAND": "run", "TERNARY": str(trained / "ternary"),
            "FULL": str(trained / "full_precision"),
            "STAGE": "report" if "--from" in command else "profile_load",
        }  # fmt: skip
        if command == "workbench meter import FILE RUN":
            stands_for["FILE"] = "power.csv"
        if command.startswith("workbench route FILE"):
            stands_for["FILE"] = "route.json"
        found = []
        for word in shlex.split(command):
            word = word.replace("[...]", f"[{GATE}]").replace("=...", "=1000")
            word = re.sub(r"(?<==)(URL|http://\S+)$", f"{self.address}/v1", word)
            if word in found:  # a further replica of an arm has an address of its own
                word = word.replace("127.0.0.1", "localhost")
            found.append(next(names) if word == "RUN" else stands_for.get(word, word))
        if command.startswith("workbench serve --"):
            found.append(self.run.name)  # the page leaves it out
        return found


GATE = "{metric: memory_ratio, labels: {arm: ternary}, at_least: 3}"


def processed(*words: str, cwd: Path, **piped) -> subprocess.Popen:
    paths = [str(PROJECT), str(PROJECT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "workbench.cli", *words]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **piped)


@contextmanager
def served(words: list[str], cwd: Path) -> Iterator[str]:
    """A server until the block ends; SIGTERM must end it well."""
    with (cwd / "served.log").open("w") as log:
        server = processed(*words, cwd=cwd, stdout=PIPE, stderr=log)
        try:
            said = " "
            while not (found := re.search(r"(https?://\S+)/v1", said)):
                said = server.stdout.readline()
                assert said, (cwd / "served.log").read_text()
            yield found[1]
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
            server.stdout.close()
    # uvicorn drains and then lets the signal have its way.
    assert code in (0, -signal.SIGTERM), (cwd / "served.log").read_text()


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Iterator[Reader]:
    """Two copies of the finished smoke run (loaded where ``make smoke`` has made it), its pilot as
    PILOT.yaml, and what else the commands ask for."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copy(ROOT / "pilots" / "smoke.yaml", folder / "PILOT.yaml")
    whole = processed("run", "PILOT.yaml", cwd=folder, stdout=PIPE, stderr=PIPE)
    said, errors = whole.communicate()
    assert whole.returncode == 0, errors
    made = Path(said.splitlines()[-1]).parent
    runs = folder / "runs"
    for suffix in ("", "-again"):
        shutil.copytree(made, runs / "smoke" / f"{made.name}{suffix}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(runs))
        reader = Reader(folder, *runs_in(runs / "smoke"))
        things_in(folder, reader.run)
        with served(["serve", reader.run.name, "--port", "0", "--drain-notice", "0"], folder) as at:
            reader.address = at
            yield reader


def models_at(address: str) -> list[dict]:
    with urllib.request.urlopen(f"{address}/v1/models", timeout=10) as answer:
        return json.load(answer)["data"]


def things_in(folder: Path, run: Run) -> None:
    """Traces, texts and power logs beside the pilot, the logs from the time of the run itself."""
    rows = "".join(
        f"2023-11-16 18:17:{i / 2:09.6f}0,{50 + i % 40},{10 + i % 9}\n" for i in range(60)
    )
    (folder / "LOG").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    text = "def f{0}(x):\n    return x + {1}  # sum {0}\n" * 4
    lines = [json.dumps({"id": f"d{i}", "text": text.format(i, i * i % 97)}) for i in range(60)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copy(folder / "corpus.jsonl", folder / "peps.jsonl")
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    first, last = int(events[0]["time"]) - 5, int(events[-1]["time"]) + 5
    at_s = [first + k / 2 for k in range(2 * (last - first))]
    (folder / "power.csv").write_text(
        "timestamp,source,watts\n" + "".join(f"{t:.1f},pdu,{200 + t % 7:.1f}\n" for t in at_s)
    )
    (folder / "FILE").write_text(
        "Time,PDU inlet (W)\n" + "".join(f"{1000 * t:.0f},{200 + t % 7:.1f}\n" for t in at_s)
    )
    channel = Channel("rapl", "package-0", "cpu", "energy", period_s=0.001, lag_s=0.0,
                      averaging_s=0.0)  # fmt: skip
    recording = Recording(folder / "power.parquet")
    recording.append([sample_row(Sample(channel, t, t, 90 * (t - first))) for t in at_s])
    recording.finish()
    (folder / "METERED.yaml").write_text(
        "extends: workbench:smoke\nname: metered\nquestion: Does the log answer?\n"
        "measure_ab: {meters: {sources: [csv], csv: power.csv}}\n"
    )


@pytest.fixture
def here(reader: Reader, tmp_path: Path, monkeypatch) -> Path:
    """A folder of this command's own, with all that the reader has."""
    for path in reader.folder.iterdir():
        if path.is_file() and path.name != "served.log":
            shutil.copy(path, tmp_path)
    shutil.copy(route_file(reader.run), tmp_path / "route.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_RUNS", str(reader.run.folder.parents[1]))
    for variable in ("TODAY_KEY", "TEAM_KEY"):
        monkeypatch.setenv(variable, "key")
    return tmp_path


def shortened(command: str) -> str:
    for pattern, options, _ in SHORTER:
        if re.match(rf"workbench {pattern}", command):
            return f"{command} {options}".strip()
    return command


BARE = {
    f"workbench {name}"
    for name in ("export", "meter record", "new", "route", "run", "serve", "show", "stage",
                 "study", "watch")
}  # fmt: skip
"""Named in a sentence; what stands after the name is run wherever a page shows it."""


def by_a_test(command: str) -> tuple[str, str] | None:
    """Which test runs it in small, and the call in it."""
    return next((t for p, t in BY_TESTS.items() if re.match(f"workbench {p}", command)), None)


WAYS = list(
    dict.fromkeys(
        way
        for _, command in shown.calls_of("workbench")
        if command not in BARE
        and not by_a_test(command)
        and not any(re.match(f"workbench {pattern}", command) for pattern in NOT_RUN)
        for way in shown.ways_of(command)
    )
)


@pytest.mark.parametrize("command", WAYS, ids=str)
def test_a_shown_command_runs(command: str, reader: Reader, here: Path, capfd, monkeypatch) -> None:
    words = reader.words(shortened(command))[1:]
    if words[0] == "new":
        (here / words[1]).unlink(missing_ok=True)
    if words[0] == "serve":
        with served(words, here) as address:
            assert len(models_at(address)) >= 2
        return
    if words[0] == "run":
        child = processed(*words, cwd=here, stdout=PIPE, stderr=STDOUT)
        said = child.communicate()[0]
        assert child.returncode == 0, said
        return
    monkeypatch.setattr(sys, "argv", ["workbench", *words])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as ended:
        main()
    torch.set_num_threads(threads)
    assert ended.value.code in (0, None), capfd.readouterr().err


def test_a_bare_name_s_command_is_run_with_what_it_asks_for() -> None:
    for name in BARE:
        assert by_a_test(name) or any(way.startswith(f"{name} ") for way in WAYS), name


@pytest.mark.parametrize(("page", "command"), shown.calls_of("make"))
def test_a_target_is_run(page: str, command: str) -> None:
    """By CI, or what stands behind it by a test; and make would begin it."""
    target = command.split()[-1]
    if not re.search(rf"^make {re.escape(target)}\b", CI, re.M):
        assert command in MAKE, f"{page}: {command}: who runs it?"
        assert not MAKE[command] or (ROOT / MAKE[command]).exists()
    begun = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert begun.returncode == 0, begun.stderr


def test_every_other_command_says_who_runs_it() -> None:
    others = [c for c in shown.shown() if not re.match(r"(sudo |\w+=\S+ )*(workbench|make) ", c)]
    left = [c for c in others if not any(re.match(pattern, c) for pattern in ELSEWHERE)]
    assert left == [f"python -m {module}" for module in MODULES]


@pytest.mark.parametrize("module", MODULES)
def test_a_shown_module_runs(module: str, reader: Reader, here: Path) -> None:
    words = [sys.executable, "-m", *reader.words(module)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_left_out_is_still_shown() -> None:
    """A reason that no page needs any more goes away with its command."""
    calls = {command for _, command in shown.calls_of("workbench")}
    all_shown = {*shown.shown(), *calls}  # with and without the environment before them
    assert set(MAKE) <= set(all_shown)
    for pattern in NOT_RUN:
        assert any(re.match(f"workbench {pattern}", command) for command in all_shown), pattern
    for pattern, (test, call) in BY_TESTS.items():
        assert any(re.match(f"workbench {pattern}", command) for command in all_shown), pattern
        assert call in (ROOT / test).read_text(encoding="utf-8")
    assert calls >= BARE
    for pattern in ELSEWHERE:
        assert any(re.match(pattern, command) for command in all_shown), pattern
    for pattern, _, _ in SHORTER:
        assert any(re.match(f"workbench {pattern}", way) for way in WAYS), pattern
