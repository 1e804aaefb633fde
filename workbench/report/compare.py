"""Two or more runs side by side: what was asked differently, and what came out differently.

The first run is the one the others are held against. A row says which of the things that
decide it differ: the configuration of its stage or of one before it, the machine, the
software; none of them means that the same thing was measured again and the difference is
what repetition costs. "perhaps software" is said where a commit does not tell what code ran:
outside of a checkout, or in one with uncommitted changes. Where both runs have an interval,
overlapping intervals are reported as such: a cautious rule, it misses small differences rather
than invent them.
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
from workbench.records.run import Run, all_runs, find_run
from workbench.roadmap import STAGES
from workbench.wording.labels import label_text
from workbench.wording.numbers import number, with_interval
from workbench.wording.vocabulary import better

SOFTWARE = {"commit", "workbench", "python", *DECIDING}
UNKNOWN_CODE, CHANGED = "unknown", "(changed)"
"""Code that no commit names, and code beside a commit: it may differ where the text does not."""


@dataclass(frozen=True)
class Comparison:
    """Frames of one row per thing and one column per run, named as in ``runs``.

    figures: stage, metric, labels, unit, better, a column of values for each run, ``ratio``
        (last over first run), ``state`` (same, within intervals, differs, only in some, not
        measured) and ``because`` (configuration, machine, software, perhaps software,
        repetition).
    metrics: behind each row of ``figures``, the metric of each run or None.
    settings: the fields of the pilots that differ, and the digests of the files they name
        where those do. surroundings: machine and software,
        the same or not, with a column ``differs``.
    """

    runs: tuple[str, ...]
    figures: pd.DataFrame
    metrics: list[list[Metric | None]]
    settings: pd.DataFrame
    surroundings: pd.DataFrame


def compare_runs(names: Sequence[str] = ()) -> Comparison:
    """Compare runs by any name ``workbench runs`` accepts; none given takes the newest two.

    Raises ConfigError for fewer than two different runs.
    """
    chosen = [find_run(name) for name in names]
    return compare(chosen or sorted(all_runs(), key=lambda run: run.folder.name)[-2:])


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
    return Comparison(names, figures, metrics, settings, surroundings)


def compare_text(runs: Sequence[Run]) -> str:
    """The comparison for a terminal."""
    found = compare(runs)
    letters = [chr(ord("A") + place) for place in range(len(found.runs))]
    heads = dict(zip(found.runs, letters, strict=True))
    lines = [f"{letter} = {name}" for name, letter in heads.items()]

    differing = found.surroundings[found.surroundings["differs"]]
    for title, frame in (("configuration", found.settings), ("machine and software", differing)):
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
    head = ["", "unit", *letters, f"{letters[-1]}/A", "", "because of"]
    lines += _aligned(rows, head)
    alone = int((found.figures["state"] == "only in some").sum())
    if alone:
        lines.append(f"{alone} figures are in some of the runs only")
    return "\n".join(lines)


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
        if key != "question" and len({repr(own.get(key, "")) for own in leaves}) > 1
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
    changed = {str(key) for key in settings["setting"]}
    differing = set(surroundings.loc[surroundings["differs"], "what"])
    (commits,) = surroundings.loc[surroundings["what"] == "commit"].values.tolist()
    unsure = any(word in str(commit) for commit in commits for word in (UNKNOWN_CODE, CHANGED))
    rows = []
    for (stage, name, labels), metrics in found.items():
        values = [m.value if m else None for m in metrics]
        state = state_of(metrics)
        alike = state in ("same", "not measured")
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
                "because": "" if alike else _because(stage, changed, differing, unsure),
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
        return "differs"
    first = known[0]
    overlap = all(m.lo <= first.hi and first.lo <= m.hi for m in known[1:])  # type: ignore[operator]
    return "within intervals" if overlap else "differs"


def _because(stage: str, changed: set[str], differing: set[str], unsure: bool) -> str:
    """Which of the things that decide a stage's figures are not the same in all runs."""
    reasons = []
    if any(f"{field}.".startswith(f"{name}.") for name in _sections(stage) for field in changed):
        reasons.append("configuration")
    if STAGES[stage].on_machine and differing & {"machine", "processor", "gpus"}:
        reasons.append("machine")
    if differing & SOFTWARE:
        reasons.append("software")
    elif unsure:
        reasons.append("perhaps software")
    return ", ".join(reasons) or "repetition"


def _sections(stage: str) -> set[str]:
    """The pilot's sections, or fields of them, that decide a stage, through the stages before it
    as well."""
    own = {"seed", *STAGES[stage].sections}
    return own.union(*(_sections(before) for before in STAGES[stage].after))


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
