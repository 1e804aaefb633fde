"""deploy/: what it reads is what the server says, and every file is what its tool takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families

from workbench.cli.serving import commands
from workbench.engine.speculation_counts import DraftCounts, SpeculationCounts
from workbench.measure.meters.sample import Channel, Sample
from workbench.serve.energy_count import EnergyCount
from workbench.serve.main import listen

DEPLOY = Path(__file__).parents[2] / "deploy"
METRIC = re.compile(r"\b(?:vllm:|workbench_)[a-z0-9_:]+")
SELECTOR = re.compile(r"\b((?:vllm:|workbench_)[a-z0-9_:]+)\{([^}]*)\}")
GROUPED = re.compile(r"\bby \(([^)]*)\)")
BUILDERS = ("docker", "podman")
GRAFANA = {"$__rate_interval": "1m", "$instance": ".*", "label_values(": "", ", instance)": ""}
"""What Grafana puts in the place of its own words, where all is chosen."""
BY_PROMETHEUS = {"instance", "job"}
"""Labels that a scrape adds."""


@pytest.fixture(scope="module")
def scraped(plain) -> dict[str, set[str]]:
    """Each sample's name of a server that has answered and refused -> its labels."""
    plain.service.processes = {
        "hybrid": SimpleNamespace(
            pid=None,
            restarts=1,
            gpu_bytes=None,
            speculation=SpeculationCounts(9, 21, {"model": DraftCounts(5, 15, 12)}),
        )
    }
    channel = Channel("rapl", "package-0", "cpu", "energy")
    meter = SimpleNamespace(reader="rapl", read=lambda: [Sample(channel, 0.0, 0.0, 1.0)])
    count = EnergyCount([meter], 3.0)
    count.read()
    plain.service.metrics.energy = count.families
    assert plain.complete(max_tokens=3).status_code == 200
    assert plain.complete(max_tokens=0).status_code == 400
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(plain.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> list[str]:
    """Of the dashboard and of the alerts."""
    board = json.loads((DEPLOY / "grafana" / "workbench.json").read_text(encoding="utf-8"))
    found = [t["expr"] for panel in board["panels"] for t in panel.get("targets", ())]
    found += [each["expr"] for each in board["annotations"]["list"]]
    found += [each["query"]["query"] for each in board["templating"]["list"][1:]]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_every_metric_and_label_that_is_read_is_said(scraped) -> None:
    read: set[str] = set()
    for expression in expressions():
        names = set(METRIC.findall(expression))
        read |= names
        assert names or expression.startswith("up{"), expression
        for name, selector in SELECTOR.findall(expression):
            labels = set(re.findall(r"(\w+)\s*=~?", selector)) - BY_PROMETHEUS
            assert labels <= scraped[name], expression
        said = set().union(*(scraped.get(name, set()) for name in names)) | BY_PROMETHEUS
        for group in GROUPED.findall(expression):
            assert {each.strip() for each in group.split(",")} <= said, expression
    assert read - scraped.keys() == set()
    # and nothing that the server says is without a place in either
    said = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in scraped}
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in read}
    assert said - shown == set()


def test_the_dashboard_is_one_that_grafana_lays_out() -> None:
    board = json.loads((DEPLOY / "grafana" / "workbench.json").read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(refs)) == len(refs)
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]


def run(*command: str, cwd: Path | None = None) -> None:
    tool = shutil.which(command[0]) or shutil.which(
        command[0], path=str(Path(sys.executable).parent)
    )
    if tool is None:
        pytest.skip(f"{command[0]} is not here")
    done = subprocess.run([tool, *command[1:]], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_takes_the_rules_and_their_own_tests_pass(command: tuple[str, ...]) -> None:
    run("promtool", *command, cwd=DEPLOY / "prometheus")


@pytest.fixture
def prometheus(plain, tmp_path: Path) -> Iterator[httpx.Client]:
    """A Prometheus of its own with our configuration, quicker, whose target is a server that runs;
    it has scraped it twice."""
    tool = shutil.which("prometheus")
    if tool is None:
        pytest.skip("prometheus is not here")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / each) for each in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [urlsplit(plain.address).netloc]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with listen("127.0.0.1", 0) as free:
        at = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--config.file=prometheus.yml", "--storage.tsdb.path=data")
    process = subprocess.Popen(
        [tool, *options, f"--web.listen-address={at}"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://{at}/api/v1", trust_env=False, timeout=30) as client:
            limit, found = time.monotonic() + 60, []
            while not (found and found[0]["value"][1] == "2"):
                assert time.monotonic() < limit and process.poll() is None, found
                time.sleep(0.2)
                plain.complete(max_tokens=3)
                with suppress(httpx.TransportError):
                    found = queried(
                        client, 'clamp_max(count_over_time(up{job="workbench"}[1h]), 2)'
                    )
            yield client
    finally:
        process.terminate()
        process.wait(30)


def queried(client: httpx.Client, expression: str) -> list[dict]:
    answer = client.get("/query", params={"query": expression}).json()
    assert answer.get("status") == "success", (expression, answer)
    return answer["data"]["result"]


@pytest.mark.slow
def test_a_prometheus_scrapes_a_server_and_knows_every_expression(prometheus) -> None:
    (up,) = queried(prometheus, 'up{job="workbench"}')
    assert up["value"][1] == "1", "it could read what the server says"
    with_data = 0
    for expression in expressions():
        for own, value in GRAFANA.items():
            expression = expression.replace(own, value)
        with_data += bool(queried(prometheus, expression))
    assert with_data > 15, "of a server that has answered"
    limit = time.monotonic() + 30
    while True:
        groups = prometheus.get("/rules").json()["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        if all(rule["health"] == "ok" for rule in rules):
            break
        assert time.monotonic() < limit, [(r["name"], r.get("lastError")) for r in rules]
        time.sleep(0.5)
    firing = {rule["name"] for rule in rules if rule["state"] == "firing"}
    assert len(rules) > 10 and firing == set(), "a server that is well"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_is_built_and_says_its_options_where_a_builder_runs() -> None:
    builder = next((each for each in BUILDERS if runs(each, "info")), None)
    if builder is None:
        pytest.skip("no builder of images runs here; hadolint has read the file")
    root, tag = DEPLOY.parent, "ternary-workbench:test"
    subprocess.run(
        [builder, "build", "-f", "deploy/docker/Dockerfile", "-t", tag, "."], cwd=root, check=True
    )
    said = subprocess.run(
        [builder, "run", "--rm", tag, "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "--drain-notice" in said


def runs(tool: str, *given: str) -> bool:
    found = shutil.which(tool)
    return (
        found is not None and subprocess.run([found, *given], capture_output=True).returncode == 0
    )


def test_every_alert_has_a_test() -> None:
    folder = DEPLOY / "prometheus"
    rules = yaml.safe_load((folder / "alerts.yml").read_text(encoding="utf-8"))
    tests = yaml.safe_load((folder / "alerts.test.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    raised = {
        each["alertname"]
        for test in tests["tests"]
        for each in test["alert_rule_test"]
        if each["exp_alerts"]
    }
    assert alerts == raised


def test_the_image_is_built_as_hadolint_says() -> None:
    run("hadolint", str(DEPLOY / "docker" / "Dockerfile"))


def test_the_unit_is_one_of_systemd(tmp_path: Path) -> None:
    unit = DEPLOY / "systemd" / "ternary-workbench.service"
    text = unit.read_text(encoding="utf-8")
    here = tmp_path / unit.name
    program = "/opt/ternary-workbench/.venv/bin/workbench"
    assert program in text  # which this machine does not have
    here.write_text(text.replace(program, shutil.which("true") or program), encoding="utf-8")
    run("systemd-analyze", "verify", str(here))


def manifests() -> list[dict]:
    text = (DEPLOY / "kubernetes" / "workbench.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("manifest", manifests(), ids=lambda each: each["kind"])
def test_kubernetes_takes_each_manifest(manifest: dict) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="the test extra has it")
    kubernetes.validate(manifest, kubernetes.latest_version(), strict=True)


def test_what_the_manifests_name_is_there(plain) -> None:
    """Probes ask paths that answer, the autoscaler a metric that the adapter makes of ours."""
    of = {manifest["kind"]: manifest for manifest in manifests()}
    pod = of["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert plain.client.get(asked["path"]).status_code == 200 and asked["port"] in ports
    assert f"--port={ports['http']}" in container["args"]
    notice = next(each for each in container["args"] if each.startswith("--drain-notice="))
    drain_s = float(notice.partition("=")[2]) + 60
    assert pod["terminationGracePeriodSeconds"] > drain_s
    (metric,) = of["HorizontalPodAutoscaler"]["spec"]["metrics"]
    adapter = (DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text(encoding="utf-8")
    (rule,) = yaml.safe_load(adapter)["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    series = rule["seriesQuery"].partition("{")[0]
    assert f"\n{series}{{" in plain.client.get("/metrics").text
    labels = of["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget"):
        selector = of[kind]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels


def test_every_option_is_one_of_the_command() -> None:
    params = typer.main.get_command(commands).commands["serve"].params
    known = {name for each in params for name in (*each.opts, *each.secondary_opts)}
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".json"]
    used = {
        option
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if "workbench serve" in line or line.strip().startswith("- --") or "OPTIONS=" in line
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)
    }
    assert len(used) > 8 and used - known == set()
