"""Every sentence that the code may write into a record is said in Russian.

A page shows the sentences of one run alone; here the code itself is read. Each text of a part that
fills records is cut where a value stands (a place of an f-string, a number, an arm's name, a
semicolon), and each phrase that is left must stand in a pattern of ``recorded.json`` or in a
reason of ``reasons.py``, or be named below as one that no page shows.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ternary_kernels

import workbench
from workbench.wording.labels import ARMS
from workbench.wording.reasons import PATTERNS
from workbench.wording.recorded import PLACE, patterns, recorded
from workbench.wording.text import Texts

PARTS = (
    "economics/", "engine/", "hybrid/", "load/", "measure/", "planner/", "report/", "stages/",
    "train/", "serve/arm.py", "serve/monitors.py", "serve/offer.py", "serve/rate_search.py",
    "serve/replicas.py", "serve/rollback_rule.py", "serve/tuned.py", "serve/tuning.py",
    "serve/upstream.py",
)  # fmt: skip
"""Begins the paths of what fills a record, or says what it is filled with."""
NOT_READ = (
    "measure/calibrate", "measure/played", "measure/simulators/", "report/compare.py",
    "report/gate_check.py", "report/trade_off_svg.py", "measure/meters/recorder.py",
    "measure/meters/watch.py", "train/memory_plan.py", "train/nodes.py", "train/processes.py",
    "train/timed_step.py", "train/worker.py",
)  # fmt: skip
"""Begins the paths of what is for a terminal, a benchmark or a test bench, or refuses a pilot."""
ELSEWHERE = (
    "GB are free on the GPU", "Hugging Face BitNet folder", "No space left", "W on average",
    "a Linux interface", "a power meter that answers here", "answer here", "as many fields",
    "at a batch of its own", "broke at step", "CSV with a header", "energy of the products",
    "false: new norms have to learn first", "goes back by", "held by the engine",
    "holds, beyond its model", "in the header", "is read through", "is the unit right",
    "none of the named ones", "one JSON object a line", "out of memory", "quoted values",
    "reading the trace", "rows about in the order", "rows in the order", "s from them",
    "sort the file", "the engine has failed", "the header has", "weights that are made",
    "workbench bench", "workbench study", "it takes no requests", "requests passed on that have",
    "all, each at its limit", "least energy: not metered", "least machine time",
    "requests/s of the load within", "no setting",
    "a whole number of tokens", "already, which is the limit", "and none fits", "h: is --zone",
    "it is off by", "serve with --enable", "set report.cost.facility.time_zone", "to learn from",
    "conversations are learned by", "of the tokens", "a turn's end included", "fsdp or hsdp",
    "the JSON of", "/query_range", "a CSV with a header", "Unix times", "with or without an offset",
    "together, the positions of", "lower measure_ab.prompt_tokens", "with more positions",
    "name a meter in", "but no meter answers", "set that, or",
    "layers are exchanged after the training, by quality and size alone", "`workbench meter list`",
)  # fmt: skip
"""Begin phrases that stand in errors, on a terminal or in no page's record."""
CUT = re.compile(
    rf"{PLACE.pattern}|[\x00{{}}]|; |\b[a-z]+_[a-z]+: |[-+−]?\d[\d,]*(?:\.\d+)?"
    rf"|\b(?:{'|'.join(ARMS)}|full precision)\b"
)
"""Where a value may stand, or another sentence begins."""
FEWEST_WORDS = 3


def texts_of(source: str) -> Iterator[str]:
    """Every text of a module that may be recorded; a place of an f-string as ``\\x00``."""
    tree = ast.parse(source)
    passed_over: set[int] = set()
    for node in ast.walk(tree):
        if _never_recorded(node):
            passed_over |= {id(inner) for inner in ast.walk(node)}
        elif isinstance(node, ast.JoinedStr):
            passed_over |= {id(inner) for inner in node.values}
    for node in ast.walk(tree):
        if id(node) in passed_over:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "\x00" for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _never_recorded(node: ast.AST) -> bool:
    """Docstrings, errors, what a function refuses a pilot by, and what a terminal alone is told."""
    if isinstance(node, (ast.Raise, ast.Assert)):
        return True
    if isinstance(node, ast.FunctionDef):
        return node.name.startswith("check") or "problems" in node.name
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    of = getattr(node.func, "value", None)
    said = getattr(of, "attr", getattr(of, "id", "")) == "progress" and name in ("note", "step")
    return said or name.endswith(("Error", "warning", "compile"))


def phrases(text: str) -> list[str]:
    """What stands between the places of values, where it is of some words."""
    cut = (part.strip(" .,:()") for part in CUT.sub("\x00", text).split("\x00"))
    return [part for part in cut if sum(word.isalpha() for word in part.split()) >= FEWEST_WORDS]


@cache
def known() -> str:
    """All phrases of the patterns, one a line."""
    templates = [one.templates["en"] for one in patterns()]
    templates = [re.sub(r"\{(#\d+):(\w+)\}", _with_noun, text) for text in templates]
    found = [part for text in templates for part in CUT.sub("\x00", text).split("\x00")]
    return "\n".join([*found, *(pattern.replace("\\", "") for _, pattern in PATTERNS)])


def _with_noun(place: re.Match[str]) -> str:
    return f"{{{place[1]}}} {place[2].replace('_', ' ')}"


def untranslated(source: str) -> list[str]:
    texts = Texts("ru")
    return [
        phrase
        for text in texts_of(source)
        if "\x00" in text or not recorded(text, texts).known
        for phrase in phrases(text)
        if phrase not in known() and not phrase.startswith(ELSEWHERE)
    ]


def test_what_the_code_may_record_is_said_in_russian() -> None:
    root, found = Path(workbench.__file__).parent, []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(PARTS) and not name.startswith(NOT_READ):
            found += [f"{name}: {it}" for it in untranslated(path.read_text(encoding="utf-8"))]
    assert not found, "no pattern of workbench/wording/recorded.json has\n" + "\n".join(found)


CORES = ("llama/native.py", "llama/reference.py", "gpu/llama.py", "gpu/graphs.py")
"""Modules of the kernels whose notes come into a record."""
LAYERS_OF_ERRORS = ("q, k and v", "gate and up")


def test_what_the_kernels_note_is_said_in_russian() -> None:
    root = Path(ternary_kernels.__file__).parent
    texts = [text for name in CORES for text in untranslated((root / name).read_text("utf-8"))]
    assert [text for text in texts if text not in LAYERS_OF_ERRORS] == []
    begin, end = "tiles_refused() {", "#elif defined(__aarch64__)"
    dispatch = (root / "csrc" / "dispatch.cpp").read_text("utf-8")
    reasons = [*filter(None, re.findall(r'"([^"]*)"', dispatch.split(begin)[1].split(end)[0]))]
    assert len(reasons) == 3
    for reason in reasons:
        said = recorded(f"the processor's tile unit (AMX) is not used: {reason}", Texts("ru"))
        assert said.known and reason.split(" (")[0] not in said.text


def test_a_new_sentence_is_found() -> None:
    assert untranslated('context.note(f"the moon was {phase} that night")')
    assert untranslated('how = "the moon was full" + "; no interval: one rollback"')
    assert not untranslated('raise StageError("the moon was full")')
    assert not untranslated('how = f"no interval: {n} blocks, an interval needs {most}"')
