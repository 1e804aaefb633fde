"""A real pilot, smoke size, beside a simulated PDU; what it recorded, against what was drawn.

    python tests/runner/metered_pilot.py        # part of make energy, about seven minutes

adds its rows to ``docs/results/energy.jsonl``: ``joules_per_request`` of each arm in the fixed
shapes and under the load, ``ratio_recovered``, and the energies of training and deployment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results" / "energy.jsonl"
LAG_S, AVERAGING_S, PERIOD_S = 0.2, 0.2, 0.05
ARMS = ("full_precision", "ternary")
PILOT = """
extends: workbench:smoke
name: metered
question: Does a pilot beside a PDU find what each arm draws?
readiness:
  threads: 1
  quiet: {action: warn, max_others_share: 1, max_steal_share: 1, max_pressure_share: 1}
train: {steps: 60}
measure_ab:
  arms: [full_precision, ternary]
  interactive_output_tokens: [16]
  batch_sizes: [2]
  blocks: 6
  budget_s: 1200
  load: {blocks: 6, block_s: 4, budget_s: 600}
  meters: {sources: [csv], csv: LOG, idle_s: 2}
deploy_rollback: {duration_s: 10}
"""


@dataclass(frozen=True)
class Truth:
    """What the node drew, as a running sum over Unix time."""

    at_s: np.ndarray
    grown_j: np.ndarray

    def joules(self, windows: pd.DataFrame) -> np.ndarray:
        """Of each row with start_s and end_s."""
        ends_j = np.interp(windows[["start_s", "end_s"]].to_numpy(float), self.at_s, self.grown_j)
        return np.diff(ends_j, axis=1)[:, 0]


def run(folder: Path) -> tuple[dict[str, StageRecord], Truth]:
    """The pilot's records and what was drawn meanwhile."""
    log, truth, pilot = (folder / name for name in ("power.csv", "truth.csv", "metered.yaml"))
    pilot.write_text(PILOT.replace("LOG", str(log)))
    slow = ["--lag-s", LAG_S, "--averaging-s", AVERAGING_S, "--period-s", PERIOD_S]
    watched = [str(os.getpid()), str(log), str(truth), *map(str, slow)]
    pdu = subprocess.Popen([sys.executable, str(HERE / "simulated_pdu.py"), *watched])
    try:
        until_s = time.monotonic() + 30
        while not log.exists() or log.stat().st_size < 100:
            assert pdu.poll() is None and time.monotonic() < until_s, "the PDU writes no log"
            time.sleep(0.1)
        arguments = ["run", str(pilot), "--no-notebooks"]
        command = [sys.executable, "-m", "workbench.cli", *arguments]
        subprocess.run(command, env={**os.environ, "WORKBENCH_RUNS": str(folder)}, check=True)
    finally:
        pdu.terminate()
        pdu.wait()
    (made,) = folder.glob("metered/*/stages")
    records = {path.name: StageRecord.load(path) for path in made.iterdir()}
    rows = np.array([line.split(",") for line in truth.read_text().splitlines()[:-1]], float)
    return {name: record for name, record in records.items() if record}, Truth(*rows.T)


def held(records: dict[str, StageRecord], truth: Truth) -> Iterator[tuple[str, str, Metric, float]]:
    """(what, of what, the figure, the truth) of everything that was metered."""
    measured, trained = records["measure_ab"], records["train_qat"]
    turns = measured.table("energies")
    turns = turns[turns["arm"].isin(ARMS)].assign(true_j=truth.joules)
    for name, own in turns.groupby("class"):
        request_j = own.groupby("arm")[["true_j", "sequences"]].sum()
        yield from _arms(measured, request_j["true_j"] / request_j["sequences"], **{"class": name})
    windows = measured.table("load_energies").assign(true_j=truth.joules)
    sent = measured.table("load_requests").groupby("arm").size()
    yield from _arms(measured, windows.groupby("arm")["true_j"].sum() / sent, source="load")
    pieces = trained.table("energies").assign(true_j=truth.joules)
    for arm, own in pieces.groupby("window"):
        metric = trained.metric("training_energy_j", arm=arm)
        yield "area_error", f"training {arm}", *_once(metric, own)
    replay = records["deploy_rollback"].table("energies").assign(true_j=truth.joules)
    metric = records["deploy_rollback"].metric("deployment_energy_j")
    yield "area_error", "deployment", *_once(metric, replay[replay["window"] == "replay"])


def _once(metric: Metric, rows: pd.DataFrame) -> tuple[Metric, float]:
    """What was metered once, with the meter's own error about it; and the truth."""
    error_j = float(rows["error_j"].sum())
    ends = {"lo": metric.value - error_j, "hi": metric.value + error_j}
    return replace(metric, **ends), float(rows["true_j"].sum())


def _arms(
    measured: StageRecord, request_j: pd.Series, **labels: str
) -> Iterator[tuple[str, str, Metric, float]]:
    of = labels.get("class", "load")
    for arm in ARMS:
        metric = measured.metric("energy_j_per_request", arm=arm, **labels)
        yield "joules_per_request", f"{of} {arm}", metric, request_j[arm]
    ratio = request_j["full_precision"] / request_j["ternary"]
    yield "ratio_recovered", of, measured.metric("energy_ratio", arm="ternary", **labels), ratio


def row(name: str, of: str, metric: Metric, true: float) -> dict[str, Any]:
    """A line of the results."""
    about = {"lag_s": LAG_S, "averaging_s": AVERAGING_S, "period_s": PERIOD_S}
    ends = {"true": true, "value": metric.value, "lo": metric.lo, "hi": metric.hi}
    numbers = {k: None if v is None else round(float(v), 4) for k, v in ends.items()}
    covered = metric.lo is not None and metric.lo <= true <= metric.hi
    return {
        "name": name, "meter": "csv", "of": f"pilot: {of}", **about, **numbers,
        "covered": float(covered), "runs": 1,
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps(row(*each)) for each in held(*run(Path(folder)))]
    print(*lines, sep="\n")
    kept = [line for line in RESULTS.read_text().splitlines() if '"of": "pilot: ' not in line]
    RESULTS.write_text("".join(f"{line}\n" for line in (*kept, *lines)))


if __name__ == "__main__":
    main()
