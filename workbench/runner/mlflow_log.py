"""A run's figures and its report in MLflow, where a team keeps its experiments there.

Asked for with ``MLFLOW_TRACKING_URI``, as everywhere in MLflow: a server, or a local store such as
``sqlite:///mlflow.db``. Needs ``mlflow`` or ``mlflow-skinny``. Every figure is logged by the name
``stage/metric/label.value``, its interval beside it; ``figures.json`` keeps all there is to know of
each. What goes wrong here is said in one sentence: the run is finished, and its page written.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from workbench.pilot.yaml_file import read_yaml
from workbench.records.metric import Metric
from workbench.records.published import ENVIRONMENT, PILOT
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.wording.labels import label_place

ADDRESS, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
USUAL_EXPERIMENT = "ternary-workbench"
RUN_TAG = "workbench.run"
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow's own patience with a server that does not answer is several minutes."""
AT_ONCE, PARAMETERS_AT_ONCE, LONGEST = 1000, 100, 500
"""What a server takes in one call, and of one parameter."""


def log_to_mlflow(run: Run, again: StageRecord | None = None) -> str:
    """Log the run where ``MLFLOW_TRACKING_URI`` says, and return what became of it in a sentence;
    empty where it is not set. A run that was logged before is brought up to date.

    again: a later judgement, whose verdict and page count then. Never raises for MLflow's sake.
    """
    address = os.environ.get(ADDRESS, "")
    if not address:
        return ""
    if importlib.util.find_spec("mlflow") is None:
        return f"not logged to MLflow ({address}): pip install mlflow-skinny, or unset {ADDRESS}"
    try:
        with _impatient():
            logged = _log(address, run, again)
    except Exception as error:  # of the library, its network and its store, all of their own kinds
        why = " ".join(str(error).split())[:300]
        return (
            f"not logged to MLflow ({address}): {type(error).__name__}: {why}; the run is complete "
            f"without it, and workbench report {run.name} tries again"
        )
    return f"logged to MLflow: run {logged} at {address}"


def _log(address: str, run: Run, again: StageRecord | None) -> str:
    tracking = importlib.import_module("mlflow.tracking")
    entities = importlib.import_module("mlflow.entities")
    client = tracking.MlflowClient(tracking_uri=address)
    experiment = _experiment(client, os.environ.get(EXPERIMENT) or USUAL_EXPERIMENT)
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run.name}'", max_results=1)
    logged = found[0] if found else client.create_run(experiment, run_name=run.name)
    key = logged.info.run_id
    records = run.records() | ({"report": again} if again else {})
    for name, value in _tags(run, records).items():
        client.set_tag(key, name, value)
    if not found:  # a parameter is written once
        parameters = [
            entities.Param(name, str(value)[:LONGEST]) for name, value in _flat(_pilot(run))
        ]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            client.log_batch(key, params=parameters[start : start + PARAMETERS_AT_ONCE])
    now = int(time.time() * 1000)
    metrics = [entities.Metric(name, value, now, 0) for name, value in figures(records).items()]
    for start in range(0, len(metrics), AT_ONCE):
        client.log_batch(key, metrics=metrics[start : start + AT_ONCE])
    page = (again.folder if again else run.folder) / run.report.name
    for path in (page, run.folder / PILOT, run.folder / ENVIRONMENT):
        if path.exists():
            client.log_artifact(key, str(path))
    every = [{"stage": s, **asdict(m)} for s, record in records.items() for m in record.metrics]
    client.log_text(key, json.dumps(every, indent=1), "figures.json")
    client.set_terminated(key)
    return key


def figures(records: Mapping[str, StageRecord]) -> dict[str, float]:
    """Name with stage and labels -> value; ``.lo`` and ``.hi`` where there is an interval."""
    found: dict[str, float] = {}
    for stage, record in records.items():
        for metric in record.metrics:
            if metric.value is not None:
                name = _name(stage, metric)
                ends = {"": metric.value, ".lo": metric.lo, ".hi": metric.hi}
                found |= {name + end: value for end, value in ends.items() if value is not None}
    return found


def _name(stage: str, metric: Metric) -> str:
    labels = sorted(metric.labels, key=label_place)
    parts = [stage, metric.name, *(f"{name}.{metric.labels[name]}" for name in labels)]
    return "/".join(re.sub(r"[^\w.\- ]", "_", part) for part in parts)[:250]


def _tags(run: Run, records: Mapping[str, StageRecord]) -> dict[str, str]:
    verdict = records["report"].facts["verdict"]["decision"] if "report" in records else ""
    git = run.environment().get("git") or {}
    return {
        RUN_TAG: run.name,
        "workbench.verdict": verdict or "unfinished",
        "workbench.commit": str(git.get("commit") or "unknown"),
        "workbench.question": str(run.header.get("question", "")),
    }


def _pilot(run: Run) -> dict[str, Any]:
    return read_yaml(run.folder / PILOT).values


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name)


@contextmanager
def _impatient() -> Iterator[None]:
    """MLflow reads these when it sends; what the user set stays."""
    ours = {name: value for name, value in IMPATIENT.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
