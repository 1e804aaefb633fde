"""The processor: model, instruction sets that matter for low-bit kernels, cores.

Linux is read from ``/proc/cpuinfo``, macOS from ``sysctl``. Instruction sets are reported by
one vocabulary on every platform, because a kernel is chosen by them and a record made on one
machine is compared with a record made on another.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from workbench.errors import ConfigError
from workbench.wording.counts import number_of

CPUINFO = Path("/proc/cpuinfo")

FEATURES = {
    "sse4.1": ("sse4_1", None, "SSE4.1"),
    "avx2": ("avx2", None, "AVX2"),
    "avx512f": ("avx512f", None, "AVX512F"),
    "avx512bw": ("avx512bw", None, "AVX512BW"),
    "avx512_vnni": ("avx512_vnni", None, "AVX512VNNI"),
    "avx512_vbmi": ("avx512vbmi", None, "AVX512VBMI"),
    "avx512_bf16": ("avx512_bf16", None, None),
    "avx_vnni": ("avx_vnni", None, None),
    "amx_int8": ("amx_int8", None, None),
    "neon": (None, "asimd", "hw.optional.neon"),
    "dotprod": (None, "asimddp", "hw.optional.arm.FEAT_DotProd"),
    "i8mm": (None, "i8mm", "hw.optional.arm.FEAT_I8MM"),
    "sve": (None, "sve", None),
    "sve2": (None, "sve2", None),
}
"""Instruction sets that decide how fast ternary and INT8 products run: our name -> (flag of
Linux on x86, flag of Linux on Arm, word or variable of macOS's sysctl)."""


@dataclass(frozen=True)
class Cpu:
    """cores: physical ones of the machine. usable_cores: physical ones that this process may
    keep busy (affinity and a container's quota taken off); the sensible number of threads."""

    model: str
    vendor: str
    architecture: str
    features: tuple[str, ...]
    cores: int
    logical_cores: int
    usable_cores: int


@functools.lru_cache(maxsize=1)
def cpu() -> Cpu:
    """The processor of this machine, read once per process."""
    logical = psutil.cpu_count(logical=True) or 1
    physical = psutil.cpu_count(logical=False) or logical
    if platform.system() == "Darwin":
        model, vendor, features = _macos()
    else:
        text = CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""
        model, vendor, features = parse_cpuinfo(text)
    return Cpu(
        model=model or platform.processor() or "unknown",
        vendor=vendor,
        architecture=platform.machine(),
        features=features,
        cores=physical,
        logical_cores=logical,
        usable_cores=_usable(physical, logical),
    )


def parse_cpuinfo(text: str) -> tuple[str, str, tuple[str, ...]]:
    """(model, vendor, features) of the first processor in the text of ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", "").split()) | set(fields.get("Features", "").split())
    features = tuple(name for name, (x86, arm, _) in FEATURES.items() if {x86, arm} & flags)
    model = fields.get("model name") or fields.get("Model") or _arm_model(fields)
    return model, fields.get("vendor_id", fields.get("CPU implementer", "")), features


def quota_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processor time that the control group grants, in cores; None without a limit."""
    try:
        quota, window = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(window)
    except (OSError, ValueError):
        pass
    try:
        limit = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period = int((root / "cpu/cpu.cfs_period_us").read_text())
        return limit / period if limit > 0 and period > 0 else None
    except (OSError, ValueError):
        return None


def measurement_threads(asked: int, field: str = "readiness.threads") -> int:
    """Threads for a measurement: ``asked`` by ``field``, or with 0 all usable cores.

    Raises ConfigError for more threads than the processor has, because they would take turns.
    """
    here = cpu()
    if asked > here.logical_cores:
        raise ConfigError(
            f"{field} is {asked}; this processor runs {here.logical_cores} at once",
            allowed=(
                f"0 (all {number_of(here.usable_cores, 'usable core')}) to {here.logical_cores}"
            ),
            next_step=f"lower {field}",
        )
    return asked or here.usable_cores


def _usable(physical: int, logical: int) -> int:
    """Affinity counts hardware threads; a fully used machine has one per physical core."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    usable = min(physical, allowed)
    quota = quota_cores()
    return max(1, usable if quota is None else min(usable, int(quota)))


def _arm_model(fields: dict[str, str]) -> str:
    """Arm kernels print no name, only the codes that identify the core's design."""
    codes = [fields[k] for k in ("CPU implementer", "CPU part", "CPU variant") if k in fields]
    return f"Arm core {' '.join(codes)}" if codes else ""


def _macos() -> tuple[str, str, tuple[str, ...]]:
    brand = _sysctl("machdep.cpu.brand_string")
    words = set()
    for key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
        words |= set(_sysctl(key).split())
    features = tuple(
        name
        for name, (_, _, apple) in FEATURES.items()
        if apple and (_sysctl(apple) == "1" if apple.startswith("hw.") else apple in words)
    )
    vendor = _sysctl("machdep.cpu.vendor") or ("Apple" if brand.startswith("Apple") else "")
    return brand, vendor, features


def _sysctl(name: str) -> str:
    """The value of a macOS kernel variable, empty where it does not exist."""
    try:
        done = subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
