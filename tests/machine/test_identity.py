import shlex
import subprocess
import sys

from ternary_kernels import build

from workbench.files import write_json
from workbench.machine.describe import describe_computing
from workbench.machine.environment import describe_environment
from workbench.machine.gpu import Gpu, select_visible
from workbench.machine.identity import machine_digest, machine_identity


def test_the_digest_is_the_same_in_another_process_and_needs_no_torch():
    code = (
        "import sys; from workbench.machine.identity import machine_digest;"
        "print(machine_digest(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [machine_digest(), "False"]


def test_the_identity_holds_nothing_that_changes_from_minute_to_minute():
    assert set(machine_identity()) == {
        "architecture", "cpu", "features", "cores", "quota_cores", "gpus", "torch"
    }  # fmt: skip


def test_visible_gpus_are_chosen_as_cuda_does():
    gpus = tuple(Gpu(i, f"GPU-{i}abc", "card", 1024) for i in range(3))
    assert select_visible(gpus, None) == gpus
    assert select_visible(gpus, "2,0") == (gpus[2], gpus[0])
    assert select_visible(gpus, "GPU-1") == (gpus[1],)
    assert select_visible(gpus, "") == ()
    assert select_visible(gpus, "1,-1,2") == (gpus[1],)


def test_the_environment_can_be_written_and_names_its_packages(tmp_path):
    environment = describe_environment()
    write_json(tmp_path / "environment.json", environment)
    assert environment["packages"]["numpy"]
    assert environment["machine"]["memory"]["total_bytes"] > 0
    git = environment["git"]
    assert (git["commit"] is None) == ("reason" in git)


def test_the_compiler_in_the_report_is_the_one_that_builds(monkeypatch):
    """``CXX`` may have arguments; taken for one name, it once made the report name another."""
    monkeypatch.setenv("CXX", "env LC_ALL=C c++")
    compiler = describe_computing()["compiler"]
    assert compiler["path"] == shlex.join(build.find_compiler()) == "env LC_ALL=C c++"
    assert compiler["version"] == build.compiler_version(["c++"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert describe_computing()["compiler"] is None
