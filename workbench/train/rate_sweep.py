"""``train.rate_sweep``: a few short trainings, each at another rate, say which rate to take.

All start from the same weights and see the same batches in the same order; the schedule is that of
the whole training, made short. They are judged on training sequences that none of them learns from
(the last of the corpus), never on the pilot's held-out documents: what chooses must not also judge.
A rate that breaks its training is out. Finished rates are kept as rows and never trained again.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from workbench.errors import StageError
from workbench.json_lines import as_line, read_rows
from workbench.pilot.sections.train import CompensatedStart, Train
from workbench.records.events import Progress
from workbench.train.arm import train_arm
from workbench.train.compensated_start import START, start_compensated
from workbench.train.setup import TrainingSetup
from workbench.wording.counts import number_of

ROWS = "rates.jsonl"
FEWEST_STEPS = 5
"""Of a short training: fewer tell no rates apart."""


def sweep_steps(train: Train) -> int:
    """Steps of each short training; 0 for no sweep."""
    return max(1, round(train.rate_sweep.share * train.steps)) if train.rate_sweep.rates else 0


def why_no_sweep(train: Train) -> str | None:
    """Why the rates that the pilot names are not tried; None where they are, or none is named."""
    steps = sweep_steps(train)
    if not 0 < steps < FEWEST_STEPS:
        return None
    return (
        f"no sweep of rates: {steps} of {number_of(train.steps, 'step')} (train.rate_sweep.share "
        f"{train.rate_sweep.share:g}) would tell none apart, {FEWEST_STEPS} are the least; "
        f"the rate is {train.ternary_lr or train.lr:g}"
    )


def sweep_rates(
    make_model: Callable[[], PreTrainedModel],
    setup: TrainingSetup,
    folder: Path,
    progress: Progress,
    teacher: PreTrainedModel | None = None,
) -> pd.DataFrame:
    """One row a rate of ``train.rate_sweep``: rate, steps, tokens, bits_per_byte (None for one that
    broke), seconds, why.

    make_model: a fresh ternary model, every time the same. folder: keeps the rows.
    Raises StageError where every rate breaks.
    """
    sweep = setup.train.rate_sweep
    short = _short(setup)
    folder.mkdir(parents=True, exist_ok=True)
    done = {row["rate"] for row in read_rows(folder / ROWS)}
    for rate in sorted(set(sweep.rates) - done):
        own = replace(short, train=short.train.model_copy(update={"ternary_lr": rate}))
        row = _tried(make_model, own, folder / f"rate_{rate:g}", progress, teacher)
        with (folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(as_line(row))
    (folder / START).unlink(missing_ok=True)
    rows = [row for row in read_rows(folder / ROWS) if row["rate"] in sweep.rates]
    found = pd.DataFrame(rows).sort_values("rate", ignore_index=True)
    if found["bits_per_byte"].isna().all():
        raise StageError(
            f"train.rate_sweep: no rate of {sorted(sweep.rates)} trains: {found['why'].iloc[0]}",
            allowed="at least one rate with a finite loss",
            next_step="try lower ones: --set train.rate_sweep.rates=[1e-5,3e-5,1e-4]",
        )
    return found


def best_rate(found: pd.DataFrame) -> tuple[float, str]:
    """The rate with the lowest loss, and what a reader must know of it."""
    best = found.loc[found["bits_per_byte"].astype(float).idxmin()]
    rate, rates = float(best["rate"]), found["rate"].tolist()
    text = (
        f"train.ternary_lr {rate:g}, by a sweep of {', '.join(f'{r:g}' for r in rates)}: "
        f"{number_of(int(best['steps']), 'step')} each, {found['seconds'].sum():,.0f} s in all, "
        "beside the training's own time"
    )
    if len(rates) > 1 and rate in (min(rates), max(rates)):
        side = "smallest" if rate == min(rates) else "largest"
        text += f"; it is the {side} that was tried, so a better one may lie beyond"
    return rate, text


def with_best_rate(setup: TrainingSetup, found: pd.DataFrame) -> TrainingSetup:
    """``setup`` at the rate that the sweep found."""
    rate = best_rate(found)[0]
    return replace(setup, train=setup.train.model_copy(update={"ternary_lr": rate}))


def _short(setup: TrainingSetup) -> TrainingSetup:
    """The training made short, and the last training sequences as the text it is judged on."""
    train, length = setup.train, setup.sequence_length
    steps = sweep_steps(train)
    count = max(1, min(train.rate_sweep.sequences, len(setup.tokens) // length // 8))
    learned, set_aside = setup.tokens[: -count * length], setup.tokens[-count * length :]
    answers = None if setup.judged is None else setup.judged[: -count * length]
    texts = setup.tokenizer.batch_decode(
        set_aside.astype("int64").reshape(count, length), skip_special_tokens=True
    )
    excerpts = pd.DataFrame(
        {
            "id": [f"training@{place}" for place in range(count)],
            "source": "training",
            "text": texts,
        },
        dtype=object,
    )
    changes: dict[str, Any] = {
        "steps": steps,
        "save_every": steps,
        "evaluations": 1,
        "trackers": [],
        "guard": train.guard.model_copy(update={"action": "off"}),
    }
    short = train.model_copy(update=changes)
    return replace(setup, train=short, tokens=learned, judged=answers, excerpts=excerpts)


def _as_it_stands(train: Train) -> Train:
    """The training of a model whose start is made already."""
    return train.model_copy(update={"compensated_start": CompensatedStart()})


def _tried(
    make_model: Callable[[], PreTrainedModel],
    setup: TrainingSetup,
    folder: Path,
    progress: Progress,
    teacher: PreTrainedModel | None,
) -> dict[str, Any]:
    rate, steps = setup.train.ternary_lr, setup.train.steps
    progress.note(f"rate {rate:g}: {number_of(steps, 'step')}")
    began, model = time.perf_counter(), make_model()
    start_compensated(model, setup, folder.parent, progress)  # once, for all rates
    setup = replace(setup, train=_as_it_stands(setup.train))
    row: dict[str, Any] = {"rate": rate, "steps": steps}
    try:
        evaluator = train_arm("ternary", model, setup, folder, progress, teacher)
    except StageError as error:
        if "broke at step" not in error.got:
            raise
        row |= {"tokens": 0, "bits_per_byte": None, "why": error.got}
    else:
        rows = evaluator.telemetry.frame("evaluations")
        loss = float(rows.loc[rows["weights"] == "ternary", "bits_per_byte"].iloc[-1])
        tokens = int(evaluator.telemetry.frame("loss")["tokens"].iloc[-1])
        row |= {"tokens": tokens, "bits_per_byte": loss, "why": ""}
    row["seconds"] = time.perf_counter() - began
    del model
    gc.collect()
    torch.cuda.empty_cache()
    shutil.rmtree(folder, ignore_errors=True)  # what is kept of a rate is its row
    return row
