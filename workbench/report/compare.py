"""Two or more runs side by side: what was asked differently, and what came out differently.

The first run is the one the others are held against. Where a figure differs its row says which of
the things that may decide it differ: the fields of the pilot that it depends on, the machine, the
software. None of them means that the same thing was measured again and the difference is what
repetition costs; what a clock tells moves with the machine's load as well, so there repetition
stays possible beside the others. "perhaps software" is said where a commit does not tell what
code ran: outside of a checkout, or in one with uncommitted changes. Where both runs have an
interval, overlapping intervals are reported as such: a cautious rule, it misses small differences
rather than invent them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.errors import ConfigError
from workbench.machine.environment import DECIDING
from workbench.pilot.yaml_file import read_yaml
from workbench.records.metric import Metric
from workbench.records.run import Run, all_runs
from workbench.records.sweep import find_runs
from workbench.roadmap import ONLY_SHOWN, STAGES, deciding
from workbench.wording.counts import number_of
from workbench.wording.labels import label_text
from workbench.wording.numbers import number, with_interval
from workbench.wording.vocabulary import better

SOFTWARE = {"commit", "workbench", "python", *DECIDING}
THREADS = "readiness.threads"
FIELDS_OF: dict[str, set[str]] = {
    "read_bandwidth_gbps": {"readiness.bandwidth_mib", "readiness.bandwidth_repetitions", THREADS},
    "gpu_read_bandwidth_gbps": {"readiness.bandwidth_mib", "readiness.bandwidth_repetitions"},
    "int8_peak_gmacs": {"readiness.bandwidth_repetitions", THREADS},
    "memory_available_gb": {THREADS},
    "gpu_memory_available_gb": {"readiness.device"},
}
"""Fields of the pilot that decide a figure, where they are fewer than those of its stage."""
PROBE_FIELDS = {"readiness.probe", "readiness.device", THREADS}
MOVES_WITH_LOAD = {"s", "ms", "tokens/s", "GB/s", "GMAC/s", "requests/s", "J", "GB", "x"}
"""Units of what a clock, a meter or the free memory tells: what else the machine had to do moves
it from run to run, and no interval of one run says by how much."""
ASKING = ("profile_load", "data", "model")
"""Sections of the pilot that say what is asked: other values there make it another question."""
EVALUATION_SET = "evaluation set"
SHOWN = ("question", "tags")
"""Of a pilot, what decides nothing."""
UNFINISHED = "(stages not finished)"
UNKNOWN_CODE, CHANGED = "unknown", "(changed)"
"""Code that no commit names, and code beside a commit: it may differ where the text does not."""


@dataclass(frozen=True)
class Comparison:
    """Frames of one row per thing and one column per run, named as in ``runs``.

    figures: stage, metric, labels, unit, better, a column of values for each run, ``ratio``
        (last over first run), ``state`` (same, within intervals, differs, only in some, not
        measured; no interval: other values, and nothing says how far chance moves them) and
        ``because``, where it differs: what may be the reason (configuration, machine, software,
        perhaps software, repetition; unfinished where a run lacks the stage).
    metrics: behind each row of ``figures``, the metric of each run or None.
    settings: the fields of the pilots that differ, and the digests of the files they name
        where those do; a last row where a run has stages left to do. surroundings: machine and
        software, the same or not, with a column ``differs``. unfinished: run -> stages it has
        not finished, in words.
    """

    runs: tuple[str, ...]
    figures: pd.DataFrame
    metrics: list[list[Metric | None]]
    settings: pd.DataFrame
    surroundings: pd.DataFrame
    unfinished: dict[str, str]


def compare_runs(names: Sequence[str] = ()) -> Comparison:
    """Compare runs by any name ``workbench runs`` accepts, or those of a sweep by ``sweep:NAME``;
    none given takes the newest two.

    Raises ConfigError for fewer than two different runs.
    """
    return compare(find_runs(names) or sorted(all_runs(), key=lambda run: run.folder.name)[-2:])


def compare(runs: Sequence[Run]) -> Comparison:
    """The runs held against the first of them."""
    names = tuple(run.name for run in runs)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            f"compare: got {', '.join(names) or 'no run'}",
            allowed="two or more runs, each once",
            next_step="workbench runs lists them; workbench run PILOT.yaml makes one",
        )
    settings = _settings(runs)
    surroundings = _surroundings(runs)
    figures, metrics = _figures(runs, settings, surroundings)
    unfinished = {run.name: ", ".join(_unfinished(run)) for run in runs}
    if any(unfinished.values()):
        last = pd.DataFrame([{"setting": UNFINISHED, **unfinished}])
        settings = pd.concat([settings.astype(object), last], ignore_index=True)
    return Comparison(names, figures, metrics, settings, surroundings, unfinished)


def asked_differently(found: Comparison, runs: Sequence[Run]) -> list[str]:
    """What makes the runs answers to different questions: sections of the pilot whose load, text or
    model differ, and the evaluation set where other documents were held out."""
    sections = {str(name).split(".")[0] for name in found.settings["setting"]}
    heldout = {ids for run in runs if (ids := _heldout(run)) is not None}
    return sorted(sections & set(ASKING)) + ([EVALUATION_SET] if len(heldout) > 1 else [])


def _heldout(run: Run) -> frozenset[str] | None:
    """The documents that its models are judged on; None where it has not come so far."""
    record = run.records().get("train_qat")
    if record is None or "heldout" not in record.tables:
        return None
    return frozenset(map(str, record.table("heldout")["id"]))


def compare_text(runs: Sequence[Run]) -> str:
    """The comparison for a terminal."""
    found = compare(runs)
    letters = [_letters(place) for place in range(len(found.runs))]
    heads = dict(zip(found.runs, letters, strict=True))
    lines = [
        f"{letter} = {name}{f': UNFINISHED, without {absent}' if absent else ''}"
        for (name, letter), absent in zip(heads.items(), found.unfinished.values(), strict=True)
    ]

    if asked_other := asked_differently(found, runs):
        lines += ["", f"these runs asked different questions: {', '.join(asked_other)}"]
    differing = found.surroundings[found.surroundings["differs"]]
    asked = found.settings[found.settings["setting"] != UNFINISHED]
    for title, frame in (("configuration", asked), ("machine and software", differing)):
        lines += ["", f"{title}:" if len(frame) else f"{title}: the same"]
        shown = frame.drop(columns="differs", errors="ignore").rename(columns=heads)
        lines += _aligned([[str(cell) for cell in row] for row in shown.to_numpy()], shown.columns)

    shared = ~found.figures["state"].isin(["only in some", "not measured"])
    lines += ["", f"figures ({letters[-1]}/A is the ratio of the last run to the first):"]
    rows = []
    for place, row in found.figures[shared].iterrows():
        cells = [_cell(metric) for metric in found.metrics[place]]
        ratio = "" if pd.isna(row["ratio"]) else number(row["ratio"])
        name = f"{row['metric']} {row['labels']}".strip()
        rows.append([name, row["unit"], *cells, ratio, row["state"], row["because"]])
    head = ["", "unit", *letters, f"{letters[-1]}/A", "", "may be because of"]
    lines += _aligned(rows, head)
    alone = int((found.figures["state"] == "only in some").sum())
    if alone:
        lines.append(f"{number_of(alone, 'figure is', 'figures are')} in some of the runs only")
    return "\n".join(lines)


def _letters(place: int) -> str:
    """``A`` to ``Z``, then ``AA``: as a table of many columns counts them."""
    before, last = divmod(place, 26)
    return (_letters(before - 1) if before else "") + chr(ord("A") + last)


def _unfinished(run: Run) -> list[str]:
    """The stages that the run has not finished. A study has none of the roadmap's."""
    done = run.records()
    return [name for name in STAGES if name not in done]


def _settings(runs: Sequence[Run]) -> pd.DataFrame:
    """The leaves of the resolved pilots that are not the same everywhere. A file that was changed
    between two runs decides their figures as much as one of another name."""
    leaves = [
        dict(_leaves(read_yaml(run.folder / "pilot.yaml").values))
        | {f"{field} (content)": digest for field, digest in run.header["files"].items()}
        for run in runs
    ]
    keys = dict.fromkeys(key for own in leaves for key in own)
    rows = [
        {
            "setting": key,
            **{run.name: own.get(key, "") for run, own in zip(runs, leaves, strict=True)},
        }
        for key in keys
        if key.split(".")[0] not in SHOWN and len({repr(own.get(key, "")) for own in leaves}) > 1
    ]
    return pd.DataFrame(rows, columns=["setting", *(run.name for run in runs)])


def _surroundings(runs: Sequence[Run]) -> pd.DataFrame:
    facts = [_facts(run) for run in runs]
    rows = [
        {
            "what": key,
            **{run.name: own.get(key, "unknown") for run, own in zip(runs, facts, strict=True)},
            "differs": len({str(own.get(key)) for own in facts}) > 1,
        }
        for key in dict.fromkeys(key for own in facts for key in own)
    ]
    return pd.DataFrame(rows, columns=["what", *(run.name for run in runs), "differs"])


def _facts(run: Run) -> dict[str, Any]:
    """What of a run's environment decides its figures."""
    environment = run.environment()
    machine = environment.get("machine") or {}
    gpus = ", ".join(gpu["name"] for gpu in machine.get("gpus") or []) or "none"
    return {
        "machine": environment.get("machine_digest", "unknown"),
        "processor": (machine.get("cpu") or {}).get("model", "unknown"),
        "gpus": gpus,
        **_software(list(run.software().values()) or [environment]),
    }


def _software(made_with: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Commit and versions; where the stages of a run differ, all of them."""
    found: dict[str, dict[str, None]] = {}
    for it in made_with:
        packages = it.get("packages") or {}
        versions = {name: packages[name] for name in DECIDING if name in packages}
        own = {key: it.get(key, "unknown") for key in ("python", "workbench")} | versions
        for key, value in ({"commit": _commit(it.get("git") or {})} | own).items():
            found.setdefault(key, {})[value] = None
    return {key: ", ".join(values) for key, values in found.items()}


def _commit(git: dict[str, Any]) -> str:
    commit = str(git.get("commit") or UNKNOWN_CODE)[:12]
    return f"{commit} {CHANGED}" if git.get("dirty") else commit


def _figures(
    runs: Sequence[Run], settings: pd.DataFrame, surroundings: pd.DataFrame
) -> tuple[pd.DataFrame, list[list[Metric | None]]]:
    records = [run.records() for run in runs]
    found: dict[tuple[str, str, str], list[Metric | None]] = {}
    for stage in STAGES:
        for place, own in enumerate(records):
            for metric in own[stage].metrics if stage in own else ():
                key = (stage, metric.name, label_text(metric.labels))
                found.setdefault(key, [None] * len(runs))[place] = metric
    changed = {str(key) for key in settings["setting"]} - ONLY_SHOWN
    differing = set(surroundings.loc[surroundings["differs"], "what"])
    (commits,) = surroundings.loc[surroundings["what"] == "commit"].values.tolist()
    unsure = any(word in str(commit) for commit in commits for word in (UNKNOWN_CODE, CHANGED))
    rows = []
    for (stage, name, labels), metrics in found.items():
        values = [m.value if m else None for m in metrics]
        state = state_of(metrics)
        if state in ("same", "not measured", "within intervals"):
            because = ""
        elif any(m is None and stage not in own for m, own in zip(metrics, records, strict=True)):
            because = "unfinished"
        else:
            known = next(m for m in metrics if m)
            because = _because(stage, known, changed, differing, unsure)
        rows.append(
            {
                "stage": stage,
                "metric": name,
                "labels": labels,
                "unit": next(m.unit for m in metrics if m),
                "better": better(name),
                **{run.name: value for run, value in zip(runs, values, strict=True)},
                "ratio": _ratio(values[0], values[-1]),
                "state": state,
                "because": because,
            }
        )
    names = [run.name for run in runs]
    columns = ["stage", "metric", "labels", "unit", "better", *names, "ratio", "state", "because"]
    frame = pd.DataFrame(rows, columns=columns)
    numbers = [*names, "ratio"]
    frame[numbers] = frame[numbers].astype(float)
    return frame, list(found.values())


def _ratio(first: float | None, last: float | None) -> float | None:
    """Last over first; of figures that are zero or negative, a ratio would say nothing."""
    return last / first if first and last and first > 0 and last > 0 else None


def state_of(metrics: Sequence[Metric | None]) -> str:
    """Of a figure in several runs, held against the first; see :class:`Comparison`."""
    known = [m for m in metrics if m is not None and m.value is not None]
    if not known:
        return "not measured"
    if len(known) < len(metrics):
        return "only in some"
    if all(m.value == known[0].value for m in known):
        return "same"
    if any(None in (m.lo, m.hi) for m in known):
        return "differs" if all(m.basis == "exact" for m in known) else "no interval"
    first = known[0]
    overlap = all(m.lo <= first.hi and first.lo <= m.hi for m in known[1:])  # type: ignore[operator]
    return "within intervals" if overlap else "differs"


def _because(
    stage: str, metric: Metric, changed: set[str], differing: set[str], unsure: bool
) -> str:
    """Which of the things that may decide a figure are not the same in all runs."""
    reasons = []
    fields = FIELDS_OF.get(metric.name) or deciding(stage)
    if metric.labels.get("source") == "probe":
        fields = PROBE_FIELDS
    if any(f"{field}.".startswith(f"{name}.") for name in fields for field in changed):
        reasons.append("configuration")
    if STAGES[stage].on_machine and differing & {"machine", "processor", "gpus"}:
        reasons.append("machine")
    if differing & SOFTWARE:
        reasons.append("software")
    elif unsure:
        reasons.append("perhaps software")
    counted = metric.unit == "x" and metric.basis == "exact"  # bytes over bytes
    moves = metric.unit in MOVES_WITH_LOAD and not counted
    if not reasons or (moves and STAGES[stage].on_machine):
        reasons.append("repetition")
    return ", ".join(reasons)


def _cell(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "not measured"
    return " ".join(with_interval(metric.value, metric.lo, metric.hi)).strip()


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _aligned(rows: Sequence[Sequence[str]], head: Sequence[str]) -> list[str]:
    """Columns padded to their widest cell, two spaces apart, indented by two."""
    if not rows:
        return []
    table = [list(head), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return [
        "  "
        + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
