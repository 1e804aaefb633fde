"""What an error says of names: what is allowed once, and never advice that stands already."""

from __future__ import annotations

import ast
from pathlib import Path

import workbench
from workbench.pilot.problems import closest, did_you_mean

SOURCES = sorted(Path(workbench.__file__).parent.rglob("*.py"))


def test_no_error_lists_what_is_allowed_twice() -> None:
    """``did_you_mean`` lists it; an error with ``allowed`` says ``closest``."""
    twice = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if "did_you_mean(" not in text:
            continue
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and any(k.arg == "allowed" for k in call.keywords):
                said = "".join(map(ast.unparse, call.args))
                twice += [f"{path.name}:{call.lineno}"] if "did_you_mean(" in said else []
    assert not twice


def test_the_nearest_name_is_said_with_and_without_the_others() -> None:
    assert did_you_mean("lrr", ["lr", "steps"]) == "; did you mean lr?; allowed: lr, steps"
    assert closest("lrr", ["lr", "steps"]) == "; did you mean lr?"
    assert closest("when", ["lr", "steps"]) == ""
