"""Which cores there are, by name: those that ship, and those that other packages bring.

A core is found by an entry point of the group ``ternary_workbench.cores``, a function from a
:class:`ternary_kernels.core.Blueprint` to a :class:`ternary_kernels.core.Core`. The cores of the
house are entry points like any other, only that no installation is needed to find them. ``auto``
is none of them: it takes ``native`` on a CPU and ``triton`` on a GPU, and ``transformers`` for a
model that these do not know.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

import torch
from ternary_kernels import llama, set_threads
from ternary_kernels.core import CORES, Blueprint, BuildCore, Core

from workbench.engine.architecture import NotForKernels
from workbench.engine.transformers_core import TransformersCore
from workbench.errors import ConfigError
from workbench.machine.device import Asked, choose_device
from workbench.pilot.problems import did_you_mean
from workbench.pilot.sections.readiness import Packing

AUTO = "auto"
OF_DEVICE = {"cpu": "native", "cuda": "triton"}
"""What ``auto`` takes."""
OF_PACKINGS = ("native", "reference")
"""Those that compute with every packing of ``readiness.packing``."""
HOUSE = tuple(
    EntryPoint(name, value, CORES)
    for name, value in (
        ("native", "workbench.engine.cores:native"),
        ("triton", "workbench.engine.cores:triton"),
        ("transformers", "workbench.engine.cores:through_transformers"),
        ("reference", "workbench.engine.cores:reference"),
        ("onnxruntime", "workbench.engine.onnxruntime_core:two_bits"),
        ("onnxruntime-4bit", "workbench.engine.onnxruntime_core:four_bits"),
        ("onnxruntime-8bit", "workbench.engine.onnxruntime_core:eight_bits"),
    )
)


def known_cores() -> dict[str, EntryPoint]:
    """Name -> entry point, the house's first. Raises ConfigError where two bear one name."""
    known = {point.name: point for point in HOUSE}
    for point in sorted(entry_points(group=CORES), key=lambda point: point.name):
        taken = known.get(point.name)
        if point.name == AUTO or (taken and taken.value != point.value):
            raise ConfigError(
                f"{package_of(point)} brings a core named {point.name}, which is another's name",
                allowed=f"a name that is none of {', '.join((AUTO, *known))}",
                next_step=f"rename it in that package's entry points ({CORES})",
            )
        known[point.name] = point
    return known


def package_of(point: EntryPoint) -> str:
    """The package that brings a core, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "ternary-workbench"


def core_builder(name: str) -> BuildCore:
    """What builds the core of this name. Raises ConfigError for an unknown name, and for a core
    whose package cannot be imported."""
    known = known_cores()
    if name not in known:
        raise ConfigError(
            f"core {name}: unknown{did_you_mean(name, [AUTO, *known])}",
            next_step="workbench core list shows what is installed; docs/cores.md how to add one",
        )
    try:
        return known[name].load()
    except Exception as error:  # whatever a package raises when it is imported
        ours = "pip install -c constraints.txt -e '.[onnx]'"
        raise ConfigError(
            f"core {name} of {package_of(known[name])} cannot be loaded: "
            f"{type(error).__name__}: {error}",
            allowed="a package whose own needs are installed",
            next_step=ours if known[name] in HOUSE else "install that package again",
        ) from error


def require_core(name: str, asked: Asked) -> None:
    """Raise ConfigError for a core that a pilot cannot have: unknown, not to be loaded here, or of
    another device than ``readiness.device``."""
    if name == AUTO:
        return
    core_builder(name)
    device = choose_device(asked).name
    for needed, own in OF_DEVICE.items():
        if name == own and device != needed:
            raise _other_device(name, device, needed)


def require_packing(packing: Packing, name: str, asked: Asked) -> None:
    """Raise ConfigError for a packing that the core ``name`` does not compute with."""
    if packing == Packing():
        return
    core = OF_DEVICE[choose_device(asked).name] if name == AUTO else name
    if core not in OF_PACKINGS:
        raise ConfigError(
            f"readiness.packing {packing.tables}, {packing.ternary} with core {core}",
            allowed="tables: auto, ternary: two_bits; all of them with core "
            f"{' and '.join(OF_PACKINGS)}",
            next_step="leave readiness.packing out, or set readiness.core to native on a CPU",
        )


def native(plan: Blueprint) -> Core:
    """Native code on a CPU, or the reference where there is no compiler, announced."""
    _require_device(plan, "native", "cpu")
    set_threads(plan.threads)
    return llama.create(*plan.packed(), plan.slots, plan.context, plan.kv_dtype)


def reference(plan: Blueprint) -> Core:
    """The plain PyTorch that every core is held against: readable, and slow."""
    _require_device(plan, "reference", "cpu")
    torch.set_num_threads(plan.threads)
    return llama.LlamaReference(*plan.packed(), plan.slots, plan.context, plan.kv_dtype)


def triton(plan: Blueprint) -> Core:
    """Triton kernels in CUDA graphs; on a CPU under Triton's interpreter alone, to be checked."""
    if find_spec("triton") is None:
        raise NotForKernels("Triton is not installed here")
    from ternary_kernels.gpu.layout import INTERPRETED
    from ternary_kernels.gpu.llama import LlamaGpu

    interpreted = INTERPRETED and plan.device == "cpu"
    if not interpreted:
        _require_device(plan, "triton", "cuda")
    other = plan.cache_of if isinstance(plan.cache_of, LlamaGpu) else None
    return LlamaGpu(
        *plan.packed(), plan.slots, plan.context, plan.kv_dtype,
        device=plan.device, capture=not interpreted, cache_of=other,
    )  # fmt: skip


def through_transformers(plan: Blueprint, reason: str = "") -> Core:
    """``transformers`` itself. reason: why the kernels do not compute it, where they should."""
    torch.set_num_threads(plan.threads)
    return TransformersCore(plan.model(), plan.slots, plan.context, plan.device, reason)


def _require_device(plan: Blueprint, name: str, device: str) -> None:
    if plan.device != device:
        raise _other_device(name, plan.device, device)


def _other_device(name: str, device: str, needed: str) -> ConfigError:
    return ConfigError(
        f"core {name} on {device}",
        allowed=f"readiness.device: {needed}, which it computes on",
        next_step="set readiness.core to auto, or readiness.device to what the core needs",
    )
