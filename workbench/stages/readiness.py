"""Stage 0: what this machine can do, and whether the pilot is worth starting here.

Facts of the machine, read bandwidth and peak of INT8 products as measured, the meters that
answer, and which shapes fit; then the speed probe on a real shape. It ends with sentences
that a person can decide by: what fits, which rows of the report can be measured here, and
which cannot, with the reason.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import ternary_kernels

from workbench.engine.cores import require_core, require_packing
from workbench.errors import ConfigError
from workbench.machine.cpu import measurement_threads
from workbench.machine.describe import describe_computing, describe_machine
from workbench.machine.device import Device, choose_device
from workbench.machine.memory import memory
from workbench.measure.bandwidth import (
    bandwidth_buffer,
    gpu_read_bandwidth_gbps,
    int8_peak_gmacs,
    read_bandwidth_gbps,
)
from workbench.measure.meters import MissingMeter, find_meters
from workbench.measure.meters.clock import SYSTEM_CLOCK
from workbench.measure.meters.csv_log import CsvMeter
from workbench.measure.meters.find import reasons, require_libraries
from workbench.measure.meters.log_check import (
    check_log,
    device_period_s,
    device_problem,
    session_takes,
)
from workbench.measure.meters.polled import PolledMeter
from workbench.measure.meters.sample import Channel, Sample
from workbench.measure.probe import leave_out, run_probe
from workbench.measure.probe_shape import OWN, own_shape
from workbench.measure.statistics import quantile
from workbench.model.presets import ADAM_BYTES, PRESETS, Shape
from workbench.pilot.problems import did_you_mean
from workbench.pilot.spec import Pilot
from workbench.records.stage_record import StageRecord
from workbench.serve.address import try_address
from workbench.stages.context import StageContext
from workbench.wording.counts import number_of

GB = 1e9
USABLE = 0.9
"""Share of the free memory that an estimate may fill: the estimates leave out allocator slack
and the key-value cache."""


def check(pilot: Pilot) -> list[str]:
    """What this pilot asks of a machine and this machine does not have."""
    probe, log = pilot.readiness.probe, pilot.measure_ab.meters.csv
    problems = [
        f"readiness.probe.{field}: {name}: unknown{did_you_mean(name, allowed)}"
        for field, name, allowed in (
            ("shape", probe.shape, ("auto", *PRESETS)),
            ("largest", probe.largest, tuple(PRESETS)),
        )
        if name not in allowed
    ]
    for look in (
        lambda: choose_device(pilot.readiness.device),
        lambda: require_core(pilot.readiness.core, pilot.readiness.device),
        lambda: require_packing(
            pilot.readiness.packing, pilot.readiness.core, pilot.readiness.device
        ),
        lambda: measurement_threads(pilot.readiness.threads),
        lambda: CsvMeter(Path(log)) if log else None,
        lambda: require_libraries(pilot.measure_ab.meters),
    ):
        try:
            look()
        except ConfigError as error:
            problems.append(str(error))
    return problems


def run(context: StageContext) -> None:
    """Fill the tables ``bandwidth``, ``fits`` and ``probe``, the figures and the verdict."""
    pilot, record = context.pilot, context.record
    machine = describe_machine() | describe_computing()
    device = context.device
    record.facts["machine"] = machine
    record.measured(
        "memory_available_gb",
        memory().available_bytes / GB,
        "GB",
        "free main memory, at most what the control group leaves",
        basis="exact",
    )
    if device.name == "cuda":
        free, how = device.free_bytes / GB, "free memory of torch's GPU 0"
        record.measured("gpu_memory_available_gb", free, "GB", how, basis="exact")

    kernels = ternary_kernels.backend()
    record.facts["kernels"] = asdict(kernels)
    if kernels.reason:
        context.note(f"native kernels are not used: {kernels.reason}")
    for name, address in pilot.measure_ab.addresses.items():
        context.progress.note(f"looking whether {name} answers")
        try_address(name, address, context.folder)
    context.progress.note("measuring memory bandwidth and INT8 peak")
    _bandwidth(context, device)
    _int8_peak(context)
    meters, missing, notes = _meters(context)
    fits = fits_table(pilot, device.name, device.free_bytes)
    record.save_table("fits", fits)
    if pilot.readiness.probe.enabled:
        run_probe(context)
    else:
        leave_out(record, "readiness.probe.enabled is false")
    record.facts["verdict"] = [
        _about_machine(machine, device),
        *_about_sizes(pilot, fits),
        _about_speed(device, kernels),
        _about_probe(record),
        _about_meters(meters, missing, notes),
    ]


def fits_table(pilot: Pilot, device: str, free_bytes: int) -> pd.DataFrame:
    """One row a preset, and one for the pilot's checkpoint, smallest first; columns as in
    docs/design.md.

    Training is that of the ternary arm with the pilot's batch, sequence and precision; serving
    is weights alone, bf16 in full precision.
    """
    room = USABLE * free_bytes
    rows = []
    shapes = dict(PRESETS)
    if own := own_shape(pilot.model.checkpoint):
        shapes[OWN] = own
    for name, shape in sorted(shapes.items(), key=lambda item: item[1].parameters):
        training = _training_bytes(pilot, shape, device)
        full, ternary = shape.serving_bytes_full(), shape.serving_bytes_ternary()
        rows.append(
            {
                "preset": name,
                "parameters": shape.parameters,
                "training_gb": training / GB,
                "serving_full_gb": full / GB,
                "serving_ternary_gb": ternary / GB,
                "trains_here": training <= room,
                "serves_full_here": full <= room,
                "serves_ternary_here": ternary <= room,
            }
        )
    return pd.DataFrame(rows)


def _bandwidth(context: StageContext, device: Device) -> None:
    section, record = context.pilot.readiness, context.record
    size_mib, repetitions = section.bandwidth_mib, section.bandwidth_repetitions
    rows: list[dict[str, Any]] = []

    def keep(name: str, where: str, values: list[float], how: str, **labels: str) -> None:
        rows.extend(
            {"device": where, **labels, "repetition": i, "gbps": v} for i, v in enumerate(values)
        )
        record.add(quantile(values, 0.5).metric(name, "GB/s", f"median, {how}", **labels))

    buffer = bandwidth_buffer(size_mib)
    for threads in sorted({1, measurement_threads(section.threads)}):
        values, how = read_bandwidth_gbps(threads, buffer, repetitions)
        keep("read_bandwidth_gbps", "cpu", values, how, threads=str(threads))
    if device.name == "cuda":
        values, how = gpu_read_bandwidth_gbps(size_mib, repetitions)
        keep("gpu_read_bandwidth_gbps", "cuda", values, how)
    record.save_table("bandwidth", pd.DataFrame(rows))


def _int8_peak(context: StageContext) -> None:
    section, record = context.pilot.readiness, context.record
    for threads in sorted({1, measurement_threads(section.threads)}):
        name, unit, labels = "int8_peak_gmacs", "GMAC/s", {"threads": str(threads)}
        try:
            values, how = int8_peak_gmacs(threads, section.bandwidth_repetitions)
        except OSError as error:
            record.missing(name, unit, str(error), **labels)
            continue
        record.add(quantile(values, 0.5).metric(name, unit, f"median, {how}", **labels))


def _meters(context: StageContext) -> tuple[list[str], list[MissingMeter], list[str]]:
    """(what can be read, what is missing, what a person should know of those that are there);
    every meter that is found is read, and a power log is watched for a moment."""
    section = context.pilot.measure_ab
    meters, missing = find_meters(section.meters)
    found, notes = [], []
    for meter in meters:
        try:
            if isinstance(meter, CsvMeter):
                context.progress.note("watching the power log")
                looked = check_log(
                    meter,
                    SYSTEM_CLOCK,
                    section.meters.max_gap_s,
                    section.turns_of_a_block,
                    section.budget_s,
                )
                if looked.problems:
                    missing.append(MissingMeter(meter.reader, "; ".join(looked.problems)))
                    continue
                found.append(f"csv {meter.path.name} (measured)")
                notes.append(f"{looked.takes}.")
                continue
            read = [one for one in meter.read() if isinstance(one, Sample)]
            now_s = SYSTEM_CLOCK.monotonic_s()
        except OSError as error:
            missing.append(MissingMeter(meter.reader, str(error)))
            continue
        finally:
            meter.close()
        shown: dict[Channel, list[Sample]] = {}
        for one in read:
            shown.setdefault(one.channel, []).append(one)
        asked = isinstance(meter, PolledMeter)
        slow: list[tuple[float, str]] = []
        for place in dict.fromkeys(channel.place for channel in shown):
            own = {channel: of for channel, of in shown.items() if channel.place == place}
            channel = next(reversed(own))
            wrong = {
                c: device_problem(of, now_s, section.meters.max_gap_s) for c, of in own.items()
            }
            if asked and all(wrong.values()):
                missing.append(MissingMeter(meter.reader, f"{channel.name}: {wrong[channel]}"))
                continue
            if channel.scope not in ("gpu", "cpu", "node"):
                checks = (
                    f"{channel.name} answers, but holds more than this machine ({channel.scope})"
                )
                cure = "it checks and gives no figure; scope: node where it feeds nothing else"
                missing.append(MissingMeter(meter.reader, f"{checks}: {cure}"))
                continue
            found.append(f"{channel.name} ({channel.kind})")
            slow += [
                (period_s, c.name)
                for c, of in own.items()
                if c.lag_unknown and not wrong[c] and (period_s := device_period_s(of))
            ]
        if asked and slow:
            period_s, name = max(slow)
            notes.append(f"{session_takes(name, period_s, section.turns_of_a_block)}.")
        notes += [f"{note}." for note in meter.notes]
        if meter.reader == "nvml":
            notes.append("NVML sees GPU boards alone: host, fans and power supplies are not in it.")
    context.record.facts["meters"] = {
        "found": found,
        "missing": reasons(missing),
        "notes": notes,
    }
    return found, missing, notes


def _training_bytes(pilot: Pilot, shape: Shape, device: str) -> int:
    """Of one device: a GPU has one process, the main memory all of them."""
    train = pilot.train
    each = shape.training_bytes(
        train.share[0],
        pilot.data.sequence_length,
        bytes_per_value=4 if train.precision == "float32" else 2,
        checkpointing=train.gradient_checkpointing,
    )
    launch = train.launch
    if launch.is_sharded:
        each -= ADAM_BYTES * shape.parameters * (launch.shards - 1) // launch.shards
    elif launch.together > 1:
        each += 4 * shape.parameters  # gradients on their way to the other processes
    return each if device == "cuda" else launch.processes * each


def _about_machine(machine: dict[str, Any], device: Device) -> str:
    processor, main = machine["cpu"], machine["memory"]
    return (
        f"{processor['model']}, {number_of(processor['cores'], 'core')}, "
        f"{main['total_bytes'] / GB:.1f} GB of memory ({main['available_bytes'] / GB:.1f} GB "
        f"free); {device.text}."
    )


def _about_sizes(pilot: Pilot, fits: pd.DataFrame) -> list[str]:
    def largest(column: str) -> str:
        names = fits.loc[fits[column] & (fits["preset"] != OWN), "preset"]
        return names.iloc[-1] if len(names) else "none of the presets"

    sentences = [
        f"Largest preset that fits: {largest('trains_here')} to train (batch "
        f"{pilot.train.share[0]} x {number_of(pilot.data.sequence_length, 'token')}), "
        f"{largest('serves_full_here')} to serve in full precision, "
        f"{largest('serves_ternary_here')} to serve as ternary."
    ]
    if pilot.model.checkpoint:
        sentences.append(_about_checkpoint(pilot.model.checkpoint, fits[fits["preset"] == OWN]))
    elif (row := fits[fits["preset"] == pilot.model.preset]).any(axis=None):
        need = f"{pilot.model.preset} needs about {row['training_gb'].item():.3g} GB to train"
        sentences.append(
            f"The pilot's model fits: {need}."
            if row["trains_here"].item()
            else f"The pilot's model does not fit here: {need}. Choose a smaller model.preset, "
            "a smaller train.batch_size, or another machine."
        )
    return sentences


def _about_checkpoint(checkpoint: str, rows: pd.DataFrame) -> str:
    """Whether the team's own model is trained and served here, by its own shape."""
    if rows.empty:
        return (
            f"The size of the pilot's own model, {checkpoint}, cannot be told before it is loaded."
        )
    row = rows.iloc[0]
    needs = (
        ("training_gb", "trains_here", "to train"),
        ("serving_full_gb", "serves_full_here", "to serve in full precision"),
        ("serving_ternary_gb", "serves_ternary_here", "to serve as ternary"),
    )
    each = ", ".join(
        f"{row[column]:.3g} GB {what} ({'fits' if row[fits] else 'does not fit'})"
        for column, fits, what in needs
    )
    cure = (
        ""
        if row["trains_here"]
        else " Choose a smaller train.batch_size or data.sequence_length, train.gradient_"
        "checkpointing, or another machine."
    )
    return (
        f"The pilot's own model, {checkpoint}, has {row['parameters'] / 1e6:,.0f}M parameters and "
        f"needs about {each}.{cure}"
    )


def _about_speed(device: Device, kernels: ternary_kernels.Backend) -> str:
    if device.name == "cuda":
        return (
            "Quality, latency, throughput and memory can be measured here, on the GPU with Triton "
            "kernels in CUDA graphs."
        )
    if kernels.name == "native":
        return (
            "Quality, latency, throughput and memory can be measured here, with native kernels "
            f"for {kernels.isa}."
        )
    return (
        f"Quality and memory can be measured here. Latency and throughput are those of PyTorch, "
        f"not of ternary kernels ({kernels.reason}): do not judge speed by them."
    )


def _about_probe(record: StageRecord) -> str:
    decode, held = (
        record.metric(name, arm="ternary", source="probe")
        for name in ("decode_speedup", "memory_ratio")
    )
    if decode is None or decode.value is None:
        return f"No speed probe: {decode.reason if decode else 'it left no figure'}."
    interval = "" if decode.lo is None else f" ({decode.lo:.2f} to {decode.hi:.2f})"
    memory_text = (
        ""
        if held is None or held.value is None
        else (f" and its weights take {held.value:.2f} times less memory")
    )
    over = {
        kind: found.value
        for kind in ("int8", "int4")
        if (found := record.metric(f"decode_speedup_over_{kind}", arm="ternary", source="probe"))
        and found.value is not None
    }
    each = " and ".join(f"{value:.2f} times as fast as {k.upper()}" for k, value in over.items())
    need = "need" if len(over) > 1 else "needs"
    untrained_text = f" It decodes {each}, which {need} no training." if over else ""
    shape = decode.labels.get("shape", "real shape")
    of = "the checkpoint's own shape" if shape == OWN else shape
    modelled = " (modelled: fewer blocks were measured)" if decode.kind == "modelled" else ""
    return (
        f"Speed probe, {of}{modelled}: ternary decodes "
        f"{decode.value:.2f} times{interval} as fast as bf16{memory_text}.{untrained_text}"
    )


def _about_meters(found: list[str], missing: list[MissingMeter], notes: list[str]) -> str:
    reasons = "; ".join(f"{meter.source}: {meter.reason}" for meter in missing)
    if found:
        lacking = f" Not read: {reasons}." if reasons else ""
        said = f"Energy can be measured here: {', '.join(found)}.{lacking}"
        return " ".join([said, *notes])
    return (
        f"Energy cannot be measured here ({reasons}); its rows will say so. A power log of a "
        "wall meter can stand in (measure_ab.meters.csv), a PDU or a BMC: docs/energy.md."
    )
