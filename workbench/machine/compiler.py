"""The C++ compiler that the native kernels would be built with."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Compiler:
    """``version``: the first line that the compiler prints about itself."""

    path: str
    version: str


def find_compiler() -> Compiler | None:
    """``$CXX`` if set, else the first of c++, g++ and clang++ that answers."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name)
        if not path:
            continue
        try:
            # macOS has a c++ that only offers to install the tools, and fails here.
            done = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0 and done.stdout:
            return Compiler(path, done.stdout.splitlines()[0].strip())
    return None
