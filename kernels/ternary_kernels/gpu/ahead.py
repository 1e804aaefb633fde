"""Compile kernels for a chip that is not here, and read what the compiler says of them.

The wrappers are called with real arguments while the launch itself is replaced by a note of
what would have been launched; each distinct variant is then compiled for the wanted chip
(Triton brings its own assembler). So exactly the configurations that a shape selects are
compiled, and registers, spills and shared memory are known without a GPU.

    with recorded() as launches:
        linear(torch.empty(16, 8192), weight)
    for report in compile_for(90, launches):
        print(report)
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from . import checks, layout

_POINTERS = {
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}

# Address, opcode (behind its predicate), and the address that a branch goes to.
_INSTRUCTION = (
    r"^\s+/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)[^;\n]*?(?:\b0x([0-9a-f]+))? ?;"
)


@dataclass(frozen=True)
class Launch:
    """A kernel, the arguments by name and the compiler's options of one launch."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What the assembler reports. stack_bytes: a thread's, not zero when registers spill.

    instructions, loop: how often each opcode stands in the whole code, and in its longest loop.
    """

    kernel: str
    capability: int
    constants: dict[str, Any]
    options: dict[str, Any]
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: Counter[str]
    loop: Counter[str]

    def __str__(self) -> str:
        constants = " ".join(f"{k}={v}" for k, v in self.constants.items() if v is not None)
        warps = self.options.get("num_warps", 4)
        stages = self.options.get("num_stages", "-")
        return (
            f"sm_{self.capability} {self.kernel} {constants} warps={warps} stages={stages}: "
            f"{self.registers} registers, {self.stack_bytes} B stack, {self.shared_bytes} B shared"
        )


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside, kernels are noted instead of launched; tensors may lie on the CPU."""
    if layout.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: there is nothing to compile. Unset it.")
    launches: list[Launch] = []

    def note(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        named = dict(zip(kernel.arg_names, args, strict=False))
        named |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
        options = {name: value for name, value in kwargs.items() if name not in named}
        launches.append(Launch(kernel, named, options))

    run, JITFunction.run = JITFunction.run, note
    runnable, checks.runnable = checks.runnable, lambda tensor, name: None
    try:
        yield launches
    finally:
        JITFunction.run, checks.runnable = run, runnable


def compile_for(capability: int, launches: Iterable[Launch]) -> list[Compiled]:
    """Compile each distinct launch for a chip (80: A100, 90: H100 and H200), once."""
    done: dict[str, Compiled] = {}
    for launch in launches:
        source = _source(launch)
        key = f"{source.hash()} {sorted(launch.options.items())}"
        if key not in done:
            binary = triton.compile(
                source, target=GPUTarget("cuda", capability, 32), options=launch.options
            )
            done[key] = _report(launch, source, binary, capability)
    return list(done.values())


def _source(launch: Launch) -> ASTSource:
    """The kernel's signature as the launcher would specialise it for these arguments."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        fixed = parameter.do_not_specialize
        if (
            parameter.is_constexpr
            or value is None
            or (type(value) is int and value == 1 and not fixed)
        ):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0 and not fixed):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)


def _report(launch: Launch, source: ASTSource, binary: Any, capability: int) -> Compiled:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        command = [str(tool), "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    code = [
        (int(at, 16), opcode, int(target, 16) if target else None)
        for at, opcode, target in re.findall(_INSTRUCTION, text, re.M)
    ]
    loops = [(to, at) for at, opcode, to in code if opcode == "BRA" and to is not None and to < at]
    first, last = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    constants = {launch.kernel.arg_names[at[0]]: value for at, value in source.constants.items()}
    return Compiled(
        launch.kernel.__name__, capability, constants, launch.options,
        usage["REG"], usage["STACK"] + usage["LOCAL"], binary.metadata.shared,
        Counter(opcode for _, opcode, _ in code),
        Counter(opcode for at, opcode, _ in code if first <= at <= last),
    )  # fmt: skip
