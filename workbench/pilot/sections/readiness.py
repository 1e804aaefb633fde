"""``readiness``: what to find out about the machine, and the speed probe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.pilot.sections.base import Count, Positive, Section, Share


class Probe(Section):
    """Full precision, INT8, INT4 and random ternary weights on a real shape, before any training.

    Speed and memory do not depend on what the weights are, so this is a real measurement.
    """

    enabled: bool = Field(True, description="false skips the probe; its figures are then missing")
    shape: str = Field(
        "auto",
        description="a model preset, or auto: that of model.checkpoint where one is given (with "
        "fewer of its blocks where it does not fit, extrapolated), else the largest preset that "
        "fits the free memory",
    )
    largest: str = Field("llama-3.2-3b", description="of the presets, auto goes no further")
    prompt_tokens: Count = Field(128, description="tokens of the prompt whose prefill is timed")
    output_tokens: Count = Field(16, description="tokens decoded in each repetition")
    repetitions: Count = Field(
        20, description="most timed blocks, arms in turn; under 6 there are no intervals"
    )
    precision: Positive = Field(
        0.05, description="ends when every speed ratio is known to this share (half its interval)"
    )
    budget_s: Positive = Field(
        120.0,
        description="time for the probe, models included; past 6 blocks it ends here, and auto "
        "takes a shape whose 6 blocks fit",
    )
    memory_share: float = Field(0.7, gt=0, lt=1, description="of the free memory the probe may use")


class Quiet(Section):
    """What a measurement asks of the machine beside it. Every timed block is held against the
    same limits; a disturbed one is measured again while time remains, else marked."""

    action: Literal["wait", "warn", "refuse"] = Field(
        "wait",
        description="before a session on a busy machine: wait up to wait_s and then warn; warn at "
        "once; or refuse to measure",
    )
    wait_s: float = Field(30.0, ge=0.0, description="longest wait for a quiet machine, s")
    max_others_share: Share = Field(0.10, description="of all CPUs, taken by other processes")
    max_steal_share: Share = Field(0.02, description="of all CPUs, taken by the hypervisor")
    max_pressure_share: Share = Field(
        0.30, description="of the time, in which a process waited for a CPU (Linux's PSI)"
    )


class Packing(Section):
    """How weights lie in memory where the CPU's kernels compute; folders stay as they are, and so
    does full precision."""

    tables: Literal["auto", "half", "int8", "mixed", "int4"] = Field(
        "auto",
        description="embedding and head beside ternary, INT4 or INT8 layers: mixed keeps frequent "
        "tokens in INT8 and the others in INT4; auto: INT8 beside ternary layers where they are "
        "big, else as they are stored",
    )
    ternary: Literal["two_bits", "triples", "base3"] = Field(
        "two_bits",
        description="ternary layers: triples are three codes in five bits, a sixth fewer bytes, "
        "the fastest decode on processors with AVX-512 and slow on others; base3 is five codes a "
        "byte, a fifth fewer bytes, fast with AVX-512 VBMI; a layer with a scale for each 128 "
        "inputs keeps two bits",
    )


class Readiness(Section):
    """What the machine can do."""

    bandwidth_mib: Count = Field(
        256, description="buffer that the bandwidth measurement reads, MiB; several last caches"
    )
    bandwidth_repetitions: Count = Field(
        7, description="timed reads for each number of threads; an interval needs 6"
    )
    threads: int = Field(
        0, ge=0, description="CPU threads for measurements; 0: all usable physical cores"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="what computes, in every stage; auto: the GPU that torch can use, else the CPU",
    )
    core: str = Field(
        "auto",
        description="what computes the models that are measured and served, all of them: a name of "
        "workbench core list, from this package or another; auto: the kernels of the device, and "
        "transformers for a model that they do not know",
    )
    packing: Packing = Packing()
    quiet: Quiet = Quiet()
    probe: Probe = Probe()
