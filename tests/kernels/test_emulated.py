"""The NEON kernels, compiled for ARM and run under an emulator: for machines that are no ARM."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from ternary_kernels import build

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() == "aarch64", reason="the whole suite runs NEON here"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


def test_neon_equals_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    parts = build.units()
    assert any("-DTK_NAME=neon" in unit.flags for unit in parts)
    objects = []
    for number, unit in enumerate(parts):
        objects.append(tmp_path / f"{number}.o")
        source = build.SOURCES / unit.source
        command = [COMPILER, *unit.flags, "-c", str(source), "-o", str(objects[-1])]
        subprocess.run(command, check=True)
    driver = Path(__file__).with_name("isa_against_plain.cpp")
    program = tmp_path / "isa_against_plain"
    compile_driver = [COMPILER, "-std=c++17", "-O1", "-static", "-pthread", f"-I{build.SOURCES}"]
    subprocess.run(
        [*compile_driver, str(driver), *map(str, objects), "-o", str(program)], check=True
    )
    done = subprocess.run([EMULATOR, str(program)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "neon equals plain" in done.stdout
