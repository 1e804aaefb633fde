"""``workbench core``: the cores of the house pass, a package's own is found, every fault shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ternary_kernels import backend
from transformers import LlamaConfig

from workbench import cli
from workbench.check.core import NEAR, check_core
from workbench.check.core_models import SPECIMENS
from workbench.engine import cores
from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.errors import ConfigError, StageError

ROOT = Path(__file__).parents[2]
SAME_ROUNDINGS = 1e-4

FOREIGN = '''
"""A core of another package: the reference by another name, and what may be wrong with one."""
import numpy as np
from ternary_kernels.llama import LlamaReference


class Mine(LlamaReference):
    backend = "mine, one thread"
    notes = []


class Forgetful(Mine):
    """Counts its rows and keeps the keys of slot 0 alone."""
    def _forward(self, tokens, slots, positions, want):
        return super()._forward(tokens, np.zeros_like(slots), positions, want)


class Sticky(Mine):
    def reset(self, slot):
        self.filled[slot] = min(self.filled[slot], 1)


class FarSighted(Mine):
    """Knows no sliding window."""
    def __init__(self, config, *rest):
        from dataclasses import replace
        super().__init__(replace(config, sliding_window=0), *rest)


class Shuffled(Mine):
    """Logits by slots, whatever the order of the rows."""
    def forward(self, tokens, slots, positions, want):
        logits = super().forward(tokens, slots, positions, True)
        want = np.broadcast_to(want, len(tokens))
        return logits[np.argsort(slots, kind="stable")][want]


class Lenient(Mine):
    """Takes a row behind a gap."""
    def _checked_rows(self, tokens, slots, positions):
        filled = self.filled.copy()
        filled[slots] = positions + 1
        return filled


class Noisy(Mine):
    """Answers whatever its weights hold."""
    def _forward(self, tokens, slots, positions, want):
        try:
            return super()._forward(tokens, slots, positions, want)
        except ValueError:
            return np.zeros((int(want.sum()), self.vocab_size), np.float32)


class Wide(Mine):
    def _forward(self, tokens, slots, positions, want):
        return super()._forward(tokens, slots, positions, want).astype(np.float64)


class Boastful(Mine):
    weight_bytes = 7


class Hasty(Mine):
    """Chooses the least likely token."""
    def decode_greedy(self, slots, tokens, steps):
        chosen = []
        for _ in range(steps):
            tokens = self.forward(tokens, slots, self.filled[list(slots)], True).argmin(axis=1)
            chosen.append(tokens.astype(np.int32))
        return np.stack(chosen)


class Uncut(Mine):
    def truncate(self, slot, length):
        pass


class Claiming(Mine):
    """Says that rows are what single steps give, to the bit."""
    rows_apart = True

    def forward_apart(self, tokens, slots, positions):
        return self.forward(tokens, slots, positions, True) * np.float32(1 + 1e-6)


class Crashing(Mine):
    def forward(self, *rows):
        raise KeyError("a register")


def build(kind):
    def made(plan):
        return kind(*plan.packed(), plan.slots, plan.context, plan.kv_dtype)
    return made


mine, forgetful, sticky, far_sighted, shuffled, lenient, noisy, wide, boastful, hasty, uncut = map(
    build,
    (Mine, Forgetful, Sticky, FarSighted, Shuffled, Lenient, Noisy, Wide, Boastful, Hasty, Uncut),
)
claiming, crashing = build(Claiming), build(Crashing)


def picky(plan):
    config, weights = plan.packed()
    if any(getattr(w, "kind", "") == "int4" for w in weights.values()):
        raise ValueError("INT4 layers; allowed: ternary, INT8 and half precision")
    return Mine(config, weights, plan.slots, plan.context)


def nothing(plan):
    raise ValueError("a model; allowed: none")
'''
NAMES = (
    "mine", "forgetful", "sticky", "far_sighted", "shuffled", "lenient", "noisy", "wide",
    "boastful", "hasty", "uncut", "claiming", "crashing", "picky", "nothing",
)  # fmt: skip


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, points: dict[str, str]) -> None:
    """A package as pip leaves it, on the path of this process."""
    (folder / "foreign_cores.py").write_text(FOREIGN, encoding="utf-8")
    info = folder / "foreign_cores-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-cores\nVersion: 1.2\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    text = "\n".join(["[ternary_workbench.cores]", *lines, ""])
    (info / "entry_points.txt").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "foreign_cores", raising=False)


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, {name: f"foreign_cores:{name}" for name in NAMES})


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("reference", SAME_ROUNDINGS),
        ("native", SAME_ROUNDINGS),
        ("transformers", NEAR),
        ("onnxruntime", NEAR),
        ("onnxruntime-4bit", NEAR),
        ("onnxruntime-8bit", NEAR),
    ],
)
def test_the_cores_of_the_house_pass(name: str, near: float) -> None:
    if name.startswith("onnxruntime"):
        pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
        pytest.importorskip("onnx", reason="the onnx extra is not installed")
    if name == "native" and backend().tile_rows:
        near = NEAR  # tiles round the activations of half precision to bf16
    found = list(check_core(name, threads=1, near=near))
    assert [str(finding) for finding in found if finding.outcome != "passed"] == []
    assert len(found) == 23


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_triton_passes_under_its_interpreter() -> None:
    """Logits and batches in full and ternary precision: all 23 checks take four minutes there."""
    layout = pytest.importorskip("ternary_kernels.gpu.layout", reason="Triton has no wheel here")
    if problem := layout.interpreter_problem():
        pytest.skip(problem)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    code = (
        "from itertools import islice\n"
        "from workbench.check.core import check_core\n"
        "print(*islice(check_core('triton', threads=1), 4), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all(line.startswith("passed") for line in lines), done.stdout


def outcomes(name: str) -> dict[tuple[str, str], str]:
    return {(found.check, found.model): found.outcome for found in check_core(name, threads=1)}


def test_a_core_of_another_package_is_found_runs_and_passes(foreign, capsys) -> None:
    assert set(outcomes("mine").values()) == {"passed"}
    model = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=50,
    )  # fmt: skip
    with Engine.random(model, "ternary", core="mine", context=16) as engine:
        assert engine.backend == "mine, one thread"
        assert len(engine.generate(GenerationRequest((3, 1), 4, ignore_eos=True)).tokens) == 4
    assert cli.app(["core", "list", "--json"], standalone_mode=False) is None
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows[: len(cores.HOUSE)]] == [p.name for p in cores.HOUSE]
    found = {row["name"]: row for row in rows}
    assert found["mine"]["package"] == "foreign-cores 1.2"
    assert found["mine"]["builds"] == "foreign_cores:mine"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("forgetful", {"batches", "slots"}),
        ("sticky", {"slots"}),
        ("far_sighted", {"logits", "batches"}),
        ("shuffled", {"batches"}),
        ("lenient", {"errors"}),
        ("noisy", {"not finite"}),
        ("wide", {"logits", "batches", "slots", "rollback"}),
        ("boastful", {"memory"}),
        ("hasty", {"greedy choice"}),
        ("uncut", {"rollback"}),
        ("claiming", {"rollback"}),
        ("crashing", {"logits", "batches", "slots", "requests", "errors", "memory"}),
        ("nothing", {"logits", "batches", "slots", "rollback", "errors", "memory"}),
    ],
)
def test_every_fault_fails_the_check_that_is_there_for_it(foreign, name: str, wanted: set) -> None:
    found: set[str] = set()
    for finding in check_core(name, threads=1):
        found |= {finding.check} if finding.outcome == "failed" else set()
        if wanted <= found:
            return
    raise AssertionError(f"{name} fails {found}")


def test_a_model_that_a_core_need_not_run_is_said_and_no_fault(foreign, tmp_path: Path) -> None:
    found = outcomes("picky")
    assert {model for (_, model), outcome in found.items() if outcome == "not offered"} == {
        "INT4", "a mixture of precisions",
    }  # fmt: skip
    assert "failed" not in found.values()
    int4 = next(each for each in SPECIMENS if each.name == "INT4").write(tmp_path / "int4")
    with pytest.raises(StageError, match="core picky does not run this model: INT4 layers"):
        Engine.load(int4, core="picky")


def test_a_failed_check_ends_the_command(foreign, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["workbench", "core", "check", "boastful", "--no-bench"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    said = capsys.readouterr()
    assert said.out.count("passed") == 22 and said.out.count("failed") == 1
    assert "core boastful fails 1 of 23 checks: memory" in said.err
    assert "weight_bytes is 7; the files hold over" in said.err


def test_a_core_is_timed_beside_ours(foreign, capsys) -> None:
    order = ["core", "check", "mine", "--shape", "tiny-1m", "--threads", "1", "--json"]
    assert cli.app(order, standalone_mode=False) is None
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if "unit" in line]
    assert {(row["engine"], row["precision"]) for row in rows} == {
        (core, kind) for core in ("mine", "native") for kind in ("ternary", "int4", "int8", "half")
    }
    ratio = next(row for row in rows if row["name"] == "decode over native")
    assert ratio["engine"] == "mine" and ratio["unit"] == "x" and 0 < ratio["value"] < 1


def test_names_that_are_none_are_refused(foreign) -> None:
    with pytest.raises(ConfigError, match="core mime: unknown; did you mean mine") as refused:
        next(check_core("mime"))
    assert "auto, native, triton, transformers, reference, onnxruntime" in str(refused.value)
    assert "workbench core list" in str(refused.value)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"native": "foreign_cores:mine"}, "foreign-cores 1.2 brings a core named native"),
        ({"auto": "foreign_cores:mine"}, "brings a core named auto, which is another's name"),
        ({"gone": "foreign_cores:gone"}, "core gone of foreign-cores 1.2 cannot be loaded"),
        ({"gone": "no_such_module:gone"}, "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_package_that_cannot_be_taken_is_named(tmp_path, monkeypatch, points, message) -> None:
    install(tmp_path, monkeypatch, points)
    with pytest.raises(ConfigError, match=message):
        cores.core_builder(next(iter(points)) if "gone" in points else "reference")


def test_a_core_of_another_device_is_refused_before_anything_starts() -> None:
    cores.require_core("auto", "cpu")
    cores.require_core("native", "cpu")
    with pytest.raises(ConfigError, match="core triton on cpu") as refused:
        cores.require_core("triton", "cpu")
    assert "readiness.device: cuda" in str(refused.value)
