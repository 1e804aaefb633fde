"""Shards beside the whole model: ``workbench bench sharded``, the training itself, small.

One ternary network is trained by one process and then, from the same weights and on the same
batches, by two and by four that share it out (``train.launch.strategy: fsdp``), with the phases
and the rate of a pilot from scratch. All have the same micro-batches: products of other shapes
differ in their last bits, and INT8 activations round some of these apart, with shards or without.
Rows: the largest difference of a step's loss, beside that of as many processes without shards
(``ddp``), whose sums have another order too; the ternary layers whose codes or scale differ in the
first forward pass, by digests that every process takes there of the weights it was given; the bytes
that a step gathers, of the float32 weights that the model has; and the scaling efficiency, time of
one process over n times that of n, medians of the steps. Each process has one thread.
"""

from __future__ import annotations

import json
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from workbench.data.corpus import read_corpus
from workbench.data.dataset import write_tokens
from workbench.data.tokenizer import make_tokenizer
from workbench.errors import ConfigError, StageError
from workbench.json_lines import as_line, read_rows
from workbench.machine.device import choose_device
from workbench.machine.provenance import provenance
from workbench.model.build import build_model
from workbench.model.presets import PRESETS
from workbench.pilot.problems import did_you_mean
from workbench.pilot.sections.data import Data
from workbench.pilot.sections.model import Model
from workbench.pilot.sections.train import Train
from workbench.records.events import Progress
from workbench.ternary import ThresholdVersion, bit_linears, to_ternary
from workbench.ternary.bitlinear import BitLinear
from workbench.train.arm import train_arm
from workbench.train.setup import TrainingSetup, heldout_excerpts
from workbench.wording.counts import number_of

SEED = 7
WARM_STEPS = 3
SMALL, SMALL_SHAPE = "small", {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
"""A network of its own, beside the presets: in larger ones more weights lie near a threshold."""
FAULT = "this is a fault of the program"
TARGET = 1e-5
"""Largest difference of a loss, nats a token."""


class FirstCodes:
    """A forward pre-hook: at its first call the digest of a layer's codes and scale, one line in
    ``file`` by each process."""

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file, self.seen = name, file, False

    def __call__(self, layer: BitLinear, inputs: Any) -> None:
        if self.seen:
            return
        self.seen = True
        codes, scale = layer.ternarized()
        digest = zlib.crc32(
            scale.cpu().numpy().tobytes(), zlib.crc32(codes.cpu().numpy().tobytes())
        )
        with self.file.open("a", encoding="utf-8") as file:
            file.write(as_line({"layer": self.name, "digest": digest}))


def bench_sharded(
    preset: str = SMALL,
    *,
    processes: Sequence[int] = (2, 4),
    steps: int = 20,
    batch: int = 8,
    sequence: int = 128,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Measure, print and return the rows; ``out`` takes them as well.

    Raises ConfigError for an unknown preset or processes that cannot share a batch.
    """
    if preset not in (names := (SMALL, *PRESETS)):
        raise ConfigError(f"preset {preset!r}: unknown{did_you_mean(preset, names)}")
    for count in processes:
        if batch % count:
            raise ConfigError(
                f"--processes {count}: they cannot share {number_of(batch, 'sequence')} equally",
                next_step="choose a --batch that they divide",
            )
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="workbench-sharded-") as name:
        folder = Path(name)
        setup = _setup(folder, steps, batch // max(processes), max(processes), sequence)
        try:
            torch.set_num_threads(1)
            whole = _trained(preset, setup, folder / "whole", {})
            rows = []
            for count in processes:
                torch.set_num_threads(count)  # the launcher gives each process its share: one
                together = {
                    strategy: _trained(
                        preset,
                        setup,
                        folder / f"{strategy}-{count}",
                        {"processes": count, "strategy": strategy},
                    )
                    for strategy in ("fsdp", "ddp")
                }
                rows += _rows(preset, count, whole, together["fsdp"], together["ddp"])
        finally:
            torch.set_num_threads(threads)
    about = {**provenance(), "date": time.strftime("%Y-%m-%d")}
    rows = [row | {"steps": steps, "batch": batch, "sequence": sequence} | about for row in rows]
    for row in rows:
        line = json.dumps(row)
        print(line, flush=True)
        if out:
            with out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    return rows


def _setup(folder: Path, steps: int, batch: int, batches: int, sequence: int) -> TrainingSetup:
    data = Data(max_bytes=1_000_000, vocab_size=1024, sequence_length=sequence)
    corpus = read_corpus(data, SEED)
    tokenizer = make_tokenizer(data, corpus.training)
    tokens = write_tokens(folder / "tokens.npy", tokenizer, corpus.training)
    train = Train(
        steps=steps,
        batch_size=batch,
        gradient_accumulation=batches,
        evaluations=1,
        save_every=steps,
    )
    return TrainingSetup(
        train=train,
        seed=SEED,
        tokens=tokens,
        sequence_length=sequence,
        tokenizer=tokenizer,
        excerpts=heldout_excerpts(corpus, tokens, sequence, 4),
        device=choose_device("auto").name,
    )


class _Training:
    """Rows of the table ``loss``, the digests of the first codes, float32 bytes of the model."""

    def __init__(self, loss: pd.DataFrame, codes: pd.DataFrame, model_bytes: int) -> None:
        self.loss, self.codes, self.model_bytes = loss, codes, model_bytes

    @property
    def step_s(self) -> float:
        return float(self.loss["seconds"].iloc[WARM_STEPS:].median())


def _trained(preset: str, setup: TrainingSetup, folder: Path, launch: dict[str, Any]) -> _Training:
    folder.mkdir()
    small = preset == SMALL
    section = Model(preset="tiny-1m", overrides=SMALL_SHAPE) if small else Model(preset=preset)
    setup = replace(
        setup, train=Train.model_validate({**setup.train.model_dump(), "launch": launch})
    )
    model = build_model(section, len(setup.tokenizer), setup.sequence_length, SEED)
    to_ternary(model, section.policy, ThresholdVersion.from_section(section.threshold))
    model.to(setup.device)
    for name, layer in bit_linears(model):
        layer.register_forward_pre_hook(FirstCodes(name, folder / "codes.jsonl"))
    model_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    progress = Progress(folder / "events.jsonl", "bench")
    telemetry = train_arm("ternary", model, setup, folder, progress).telemetry
    codes = pd.DataFrame(read_rows(folder / "codes.jsonl"))
    return _Training(telemetry.frame("loss"), codes, model_bytes)


def _rows(
    preset: str, count: int, whole: _Training, shared: _Training, copied: _Training
) -> list[dict[str, Any]]:
    """shared: in shards; copied: by as many processes that hold the whole model each."""
    if not (whole.loss["batch"] == shared.loss["batch"]).all():
        raise StageError("the trainings saw other batches", next_step=FAULT)
    difference, by_sums = (
        float((whole.loss["loss"] - other.loss["loss"]).abs().max()) for other in (shared, copied)
    )
    wanted = whole.codes.set_index("layer")["digest"]
    other = shared.codes.loc[shared.codes["digest"] != shared.codes["layer"].map(wanted), "layer"]
    if len(shared.codes) != count * len(wanted):
        raise StageError(
            f"digests of {number_of(len(shared.codes), 'layer')} were taken, not of each of "
            f"{len(wanted)} by each of {count}",
            next_step=FAULT,
        )
    gathered = int(shared.loss["gathered_bytes"].median())
    reduced = int(shared.loss["reduced_bytes"].median())
    of = f"{preset}, fsdp over {number_of(count, 'process')}"
    efficiency = whole.step_s / (count * shared.step_s)
    return [
        {"name": "largest difference of a loss", "of": of, "value": difference,
         "unit": "nats a token", "target": TARGET, "without_shards": by_sums},
        {"name": "layers whose codes or scale differ at step 1", "of": of,
         "value": int(other.nunique()), "unit": "layers", "target": 0,
         "layers": len(wanted), "processes": count},
        {"name": "bytes gathered a step by a process", "of": of, "value": gathered, "unit": "B",
         "reduced": reduced, "weights": shared.model_bytes,
         "over_weights": round(gathered / shared.model_bytes, 3)},
        {"name": "scaling efficiency", "of": of, "value": round(efficiency, 3), "unit": "ratio",
         "step_ms_alone": round(1e3 * whole.step_s, 1),
         "step_ms": round(1e3 * shared.step_s, 1)},
    ]  # fmt: skip
