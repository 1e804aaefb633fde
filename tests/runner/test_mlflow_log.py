"""MLflow: what is logged is what the records say; what is missing or broken is one sentence."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import pytest

from workbench.runner import mlflow_log
from workbench.runner.mlflow_log import ADDRESS, RUN_TAG, figures, log_to_mlflow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = Path(__file__).parents[1] / "report" / "sample_run.py"
    spec = importlib.util.spec_from_file_location("sample_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("run")
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        made = module.make_run(folder)
        made.report.write_text("<p>the page</p>")
        yield made


def test_nothing_is_said_where_nobody_asked(run, monkeypatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    assert log_to_mlflow(run) == ""


def test_a_missing_package_is_named(run, monkeypatch) -> None:
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:1")
    monkeypatch.setattr(mlflow_log.importlib.util, "find_spec", lambda name: None)
    assert "pip install mlflow-skinny" in log_to_mlflow(run)


def test_each_figure_has_a_name_of_its_own(run) -> None:
    records = run.records()
    named = figures(records)
    metrics = [m for r in records.values() for m in r.metrics if m.value is not None]
    ends = [end for m in metrics for end in (m.value, m.lo, m.hi) if end is not None]
    assert len(named) == len(ends)
    speed = records["measure_ab"].metric("speedup", arm="ternary", **{"class": "interactive_512"})
    name = "measure_ab/speedup/arm.ternary/source.trained/class.interactive_512"
    assert (named[name], named[f"{name}.lo"]) == (speed.value, speed.lo)


def test_a_server_that_is_not_there_is_one_sentence(run, monkeypatch) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv(ADDRESS, f"http://127.0.0.1:{free.getsockname()[1]}")
    said = log_to_mlflow(run)
    assert said.startswith("not logged to MLflow") and "\n" not in said
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in mlflow_log.os.environ


def test_a_local_store_has_it_all_once(run, tmp_path, monkeypatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv(ADDRESS, (tmp_path / "store").as_uri())
    for _ in range(2):  # as after `workbench report`
        assert log_to_mlflow(run).startswith("logged to MLflow: run ")
    client = tracking.MlflowClient()
    experiment = client.get_experiment_by_name("ternary-workbench")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.data.metrics == pytest.approx(figures(run.records()))
    assert logged.data.tags[RUN_TAG] == run.name
    verdict = run.record("report").facts["verdict"]["decision"]
    assert logged.data.tags["workbench.verdict"] == verdict
    assert logged.data.params["seed"] == "1234"
    kept = {item.path for item in client.list_artifacts(logged.info.run_id)}
    assert {"report.html", "pilot.yaml", "figures.json"} <= kept
    told = json.loads(
        Path(client.download_artifacts(logged.info.run_id, "figures.json")).read_text()
    )
    assert len(told) == sum(len(record.metrics) for record in run.records().values())
