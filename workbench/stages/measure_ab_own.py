"""Part of stage 3 that judges in the team's terms: its own prompts, answered by every arm, and its
own tasks, scored by every arm, with the engines of the fixed shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from workbench.data.own_prompts import OwnPrompt, prompt_tokens, read_prompts
from workbench.data.own_tasks import TaskRow, read_task
from workbench.engine.engine import Engine
from workbench.errors import ConfigError, StageError
from workbench.measure.accepted_energy import accepted_shares, counting_checks
from workbench.measure.own_figures import PromptFigures, task_figures, task_pairs
from workbench.measure.own_prompts import answer_prompts
from workbench.measure.own_tasks import score_task, task_tokens
from workbench.paths import shown
from workbench.pilot.spec import Pilot
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.wording.counts import number_of

BASELINE = "full_precision"
TODAYS = "checkpoint"
OF_CHECKS = ("accepted_share", "accepted_difference")
SHOWN_TOO_LONG = 3


def check(pilot: Pilot) -> list[str]:
    """What is wrong in the files of prompts and tasks, before anything is trained; a gate on
    accepted answers where no prompt has a check."""
    problems: list[str] = []
    prompts: list[OwnPrompt] = []
    try:
        prompts = read_prompts(pilot.prompts)
    except ConfigError as error:
        problems.append(_sentence("prompts.file", error))
    for name, section in pilot.tasks.items():
        try:
            read_task(section)
        except ConfigError as error:
            problems.append(_sentence(f"tasks.{name}.file", error))
    if prompts and not any(own.has_check for own in prompts):
        problems += [
            f"report.gates.{place}.metric: {gate.metric}, and no row of {shown_file(pilot)} has a "
            "check; give one contains, regex, json_valid or json_schema"
            for place, gate in enumerate(pilot.report.gates)
            if gate.metric in OF_CHECKS
        ]
    return problems


def shown_file(pilot: Pilot) -> str:
    return shown(Path(pilot.prompts.file or ""))


def _sentence(where: str, error: ConfigError) -> str:
    parts = [error.got, error.allowed and f"allowed: {error.allowed}", error.next_step]
    return f"{where}: {'; '.join(filter(None, parts))}"


@dataclass
class OwnQuestions:
    """What the arms are asked, as tokens of the models' tokenizer."""

    prompts: list[OwnPrompt] = field(default_factory=list)
    prompt_ids: list[list[int]] = field(default_factory=list)
    tasks: dict[str, list[TaskRow]] = field(default_factory=dict)
    context: int = 0
    """Tokens that the longest prompt takes with its answer, or the longest question."""


def own_questions(
    pilot: Pilot, tokenizer: PreTrainedTokenizerBase, longest: int | None
) -> OwnQuestions:
    """Those of the pilot's files.

    longest: positions of the models; None: no limit. Raises StageError for what does not fit, and
    ConfigError for files that changed since they were checked.
    """
    prompts = read_prompts(pilot.prompts)
    ids = prompt_tokens(tokenizer, prompts, pilot.prompts.file or "")
    tasks = {name: read_task(section) for name, section in pilot.tasks.items()}
    sizes = dict(_prompt_sizes(pilot, prompts, ids)) | dict(_task_sizes(pilot, tasks, tokenizer))
    if longest is not None:
        beyond = [f"{where}: {size}" for where, size in sizes.items() if size > longest]
        if beyond:
            told = "; ".join(beyond[:SHOWN_TOO_LONG])
            more = f"; {len(beyond) - SHOWN_TOO_LONG} more" if len(beyond) > SHOWN_TOO_LONG else ""
            raise StageError(
                f"tokens of prompt and answer, or of a question: {told}{more}",
                allowed=f"{longest} together, the positions of the models",
                next_step="shorten these rows, or lower prompts.max_tokens; what was trained is "
                "kept, and the same command goes on",
            )
    return OwnQuestions(prompts, ids, tasks, max(sizes.values(), default=0))


def _prompt_sizes(
    pilot: Pilot, prompts: list[OwnPrompt], ids: list[list[int]]
) -> Iterator[tuple[str, int]]:
    for own, tokens in zip(prompts, ids, strict=True):
        where = f"{shown_file(pilot)}, line {own.line}"
        yield where, len(tokens) + (own.max_tokens or pilot.prompts.max_tokens)


def _task_sizes(
    pilot: Pilot, tasks: dict[str, list[TaskRow]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, int]]:
    for name, rows in tasks.items():
        for row in rows:
            pairs = task_tokens(tokenizer, row)
            where = f"{shown(Path(pilot.tasks[name].file))}, line {row.line}"
            yield where, max(len(before) + len(after) for before, after in pairs)


def judge_in_own_terms(
    context: StageContext,
    asked: OwnQuestions,
    engines: dict[str, Engine],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Fill the tables ``prompts``, ``tasks`` and ``task_pairs`` and their figures; nothing where
    the pilot names no file."""
    folder = context.folder / "session"
    folder.mkdir(parents=True, exist_ok=True)
    if asked.prompts:
        _ask_prompts(context, asked, engines, tokenizer, folder)
    if asked.tasks:
        _score_tasks(context, asked, engines, tokenizer, folder)


def count_accepted_energy(record: StageRecord) -> None:
    """The energy of accepted answers under the load by the checks of own prompts as well, once both
    are recorded."""
    shares = accepted_shares(record.metrics)
    record.metrics[:] = counting_checks(record.metrics, shares, BASELINE)


def _ask_prompts(
    context: StageContext,
    asked: OwnQuestions,
    engines: dict[str, Engine],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    pilot, record = context.pilot, context.record
    reference = TODAYS if TODAYS in engines else BASELINE
    context.progress.note(f"{number_of(len(asked.prompts), 'own prompt')}, answered by each arm")
    rows = answer_prompts(
        engines,
        reference,
        asked.prompts,
        asked.prompt_ids,
        tokenizer,
        pilot.prompts.max_tokens,
        folder / "prompts.jsonl",
        lambda done, of: context.progress.step("own prompts", done, of, "prompts"),
    )
    record.save_table("prompts", rows)
    record.facts["prompts_reference"] = reference
    figures = PromptFigures(reference, BASELINE, pilot.measure_ab.bootstrap, pilot.seed)
    for metric in figures.of(rows):
        record.add(metric)


def _score_tasks(
    context: StageContext,
    asked: OwnQuestions,
    engines: dict[str, Engine],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    pilot, record = context.pilot, context.record
    parts = []
    for name, rows in asked.tasks.items():
        parts.append(
            score_task(
                engines,
                name,
                rows,
                tokenizer,
                pilot.tasks[name].normalise,
                folder / f"task-{name}.jsonl",
                partial(_scoring, context, name),
            )
        )
    scored = pd.concat(parts, ignore_index=True)
    pairs = task_pairs(scored, BASELINE)
    record.save_table("tasks", scored)
    record.save_table("task_pairs", pairs)
    normalised = {name: section.normalise for name, section in pilot.tasks.items()}
    for metric in task_figures(scored, pairs, normalised):
        record.add(metric)


def _scoring(context: StageContext, name: str, done: int, of: int) -> None:
    context.progress.step(f"task {name}", done, of, "questions")
