"""Training speed of the ternary arm over the dense one: ``workbench bench train``.

One process holds both models, made from the same weights. They take turns in blocks (dense,
ternary, ternary, dense, ...), so that a slow moment of the machine hits both; a pair of blocks
gives one ratio, and the interval is over pairs. A step is what the trainer does in the ternary
arm's last phase: forward at strength 1, backward, clipping, AdamW, the quantised weights made
anew. Token ids are random: no arithmetic depends on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from workbench.bench.train_rows import HEADER, TrainRow
from workbench.errors import ConfigError
from workbench.machine.device import choose_device
from workbench.machine.heap import freed_memory_kept
from workbench.machine.provenance import provenance
from workbench.measure.statistics import mean, mean_ratio
from workbench.model.build import build_model
from workbench.model.presets import PRESETS
from workbench.pilot.problems import did_you_mean
from workbench.pilot.sections.model import Model
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.train.quiet import quiet_transformers
from workbench.train.timed_step import SEED, TimedModel

ORDER = ("dense", "ternary", "ternary", "dense")
WARM_STEPS = 2


def bench_train(
    preset: str = "tiny-2m",
    *,
    batch: int = 16,
    sequence: int = 128,
    vocab: int = 4096,
    pairs: int = 8,
    steps: int = 3,
    as_json: bool = False,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[TrainRow]:
    """Measure and say the rows; the last one is the ratio.

    batch, sequence: sequences a step and tokens of each. vocab: tokens of the vocabulary.
    pairs: blocks of each arm. steps: of a block. out: a file to which the rows are appended, each
    with its commit, machine and date.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}: unknown{did_you_mean(preset, PRESETS)}")
    for name, value in {
        "batch": batch,
        "sequence": sequence,
        "pairs": pairs,
        "steps": steps,
    }.items():
        if value < 1:
            raise ConfigError(f"--{name} {value}", allowed="1 or more")
    device = torch.device(choose_device("auto").name)
    section = Model(preset=preset)
    arms = {}
    with quiet_transformers():
        for arm in ("dense", "ternary"):
            model = build_model(section, vocab, sequence, SEED)
            if arm == "ternary":
                threshold = ThresholdVersion.from_section(section.threshold)
                to_ternary(model, section.policy, threshold, section.activations)
            arms[arm] = TimedModel(model.to(device), batch, sequence, vocab, device)
    tokens = batch * sequence * steps
    seconds: dict[str, list[float]] = {"dense": [], "ternary": []}
    with freed_memory_kept():  # as the trainer does
        for arm in arms.values():
            arm.seconds(WARM_STEPS)
        for block in range(2 * pairs):
            arm = ORDER[block % len(ORDER)]
            seconds[arm].append(arms[arm].seconds(steps))
    shape = f"{preset}, {batch} x {sequence}"
    rows = [
        TrainRow.of("training speed", arm, shape, mean(tokens / torch.tensor(found).numpy()))
        for arm, found in seconds.items()
    ]
    ratio = mean_ratio(seconds["dense"], seconds["ternary"])
    rows.append(TrainRow.of("training_speed_ratio", "ternary over dense", shape, ratio, "ratio"))
    if not as_json:
        say(HEADER)
    for row in rows:
        say(row.as_json() if as_json else row.as_text())
    if out:
        where = {**provenance(), "date": time.strftime("%Y-%m-%d")}
        with out.open("a", encoding="utf-8") as file:
            file.writelines(row.as_json(**where) + "\n" for row in rows)
    return rows
