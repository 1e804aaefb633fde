"""Compile the native library: ``python -m ternary_kernels.build [--force] [--sanitize]``.

The kernels' source is compiled once for each instruction set of the machine's architecture,
each time with its own flags and namespace; the processor's features are asked at run time, so
one library serves every machine of that architecture. The file's name carries a digest of
sources and flags: a library built from other sources is never loaded. The result is moved into
place in one step, so processes that build at the same time do not disturb each other.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
OUTPUT = Path(__file__).parent / "_native"
COMMON = ("dispatch", "team", "ops", "llama", "layout")

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
_VBMI = (*_AVX512, "-mavx512vbmi", "-mavx512vbmi2")
_AMX = ("-mamx-tile", "-mamx-int8", "-mamx-bf16")
# Instruction set -> (its simd_*.h, flags). "plain" is there on every architecture.
_ISAS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "x86_64": {
        "amx": ("TK_SIMD_AVX512", (*_VBMI, *_AMX, "-DTK_TILES_AMX")),
        "avx512vbmi": ("TK_SIMD_AVX512", _VBMI),
        "avx512vnni": ("TK_SIMD_AVX512", _AVX512),
        "avxvnni": ("TK_SIMD_AVX2", (*_AVX2, "-mavxvnni")),
        "avx2": ("TK_SIMD_AVX2", _AVX2),
    },
    "aarch64": {"neon": ("TK_SIMD_NEON", ("-march=armv8.2-a+dotprod+fp16",))},
}
# fp-contract: the scale is multiplied and added in two roundings everywhere, so that every
# instruction set gives the same bits.
_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-g1")
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


class BuildError(RuntimeError):
    """There is no compiler, or it failed; the text says which and what it printed."""


@dataclass(frozen=True)
class Unit:
    source: str
    flags: tuple[str, ...]


def find_compiler() -> list[str]:
    """The C++ compiler as a command: ``$CXX``, which may have arguments, else the first of c++,
    g++ and clang++ that answers. Raises :class:`BuildError`.
    """
    named = os.environ.get("CXX")
    if named:
        command = shlex.split(named)
        if shutil.which(command[0]) is None:
            raise BuildError(f"CXX={named} is not there; set CXX to a C++17 compiler or unset it")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) and compiler_version([name]):
            return [name]
    raise BuildError("no C++ compiler (looked for $CXX, c++, g++, clang++); install g++ or clang")


def compiler_version(command: list[str]) -> str | None:
    """The first line that a compiler prints about itself; None from one that does not work: the
    c++ of a Mac may only offer to install the tools."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines and done.returncode == 0 else None


def units(sanitize: bool = False) -> list[Unit]:
    """What is compiled, with which flags, on this machine's architecture."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    # GCC's own AVX-512 header trips its uninitialised-variable warning.
    common: tuple[str, ...] = (*_FLAGS, "-Wno-uninitialized")
    fast, small = ("-O3",), ("-O2",)
    if sanitize:
        common, fast, small = (*common, *_SANITIZE), ("-O1",), ("-O1",)
    found = [Unit(f"{name}.cpp", (*common, *small)) for name in COMMON]
    found.append(Unit("isa.cpp", (*common, *small, *_isa_defines("plain", None))))
    model = (*_isa_defines("tile_model", None), "-DTK_TILES_MODEL")
    found.append(Unit("isa.cpp", (*common, *fast, *model)))
    for isa, (simd, flags) in _ISAS.get(machine, {}).items():
        found.append(Unit("isa.cpp", (*common, *fast, *flags, *_isa_defines(isa, simd))))
    return found


def library_path(sanitize: bool = False) -> Path:
    """Where the library of the present sources and flags lies, built or not."""
    digest = hashlib.sha256(platform.machine().encode())
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".h", ".cpp"):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for unit in units(sanitize):
        digest.update(repr(unit).encode())
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    kind = "sanitized" if sanitize else "ternary"
    return OUTPUT / f"lib{kind}_{digest.hexdigest()[:16]}{suffix}"


def build(*, force: bool = False, sanitize: bool = False) -> Path:
    """Compile if needed; returns the library's path. Raises :class:`BuildError`."""
    target = library_path(sanitize)
    if target.exists() and not force:
        return target
    compiler = find_compiler()
    try:
        OUTPUT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=OUTPUT, prefix="build-") as folder:
            # The instruction sets take longest: they go first.
            jobs = list(enumerate(reversed(units(sanitize))))
            with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
                objects = list(pool.map(lambda job: _compile(compiler, Path(folder), *job), jobs))
            library = Path(folder) / target.name
            link = [*compiler, "-shared", "-pthread", *(_SANITIZE if sanitize else ())]
            _call([*link, "-o", str(library), *map(str, objects), "-lm"])
            os.replace(library, target)
    except OSError as error:
        raise BuildError(f"cannot write to {OUTPUT}: {error}") from error
    _remove_stale(target)
    return target


def _isa_defines(isa: str, simd: str | None) -> tuple[str, ...]:
    names = (f"-DTK_NAME={isa}", f"-DTK_NS=tk_{isa}", f"-DTK_TABLE=tk_table_{isa}")
    return names if simd is None else (*names, f"-D{simd}")


def _compile(compiler: list[str], folder: Path, number: int, unit: Unit) -> Path:
    output = folder / f"{number}.o"
    _call([*compiler, *unit.flags, "-c", str(SOURCES / unit.source), "-o", str(output)])
    return output


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).splitlines()[:20])
        raise BuildError(f"{command[0]} failed ({done.returncode}): {shlex.join(command)}\n{tail}")


def _remove_stale(target: Path) -> None:
    prefix = target.name.split("_")[0]
    for old in OUTPUT.glob(f"{prefix}_*{target.suffix}"):
        # Another process may still map it: unlinking keeps its copy alive.
        if old != target:
            old.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the native kernels.")
    parser.add_argument("--force", action="store_true", help="compile even if up to date")
    parser.add_argument("--sanitize", action="store_true", help="AddressSanitizer and UBSan")
    options = parser.parse_args()
    try:
        print(build(force=options.force, sanitize=options.sanitize))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
