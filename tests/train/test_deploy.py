"""deploy/: trainings on several nodes. Each file is what its tool takes, and starts what we mean.

The scripts are run with the environment that Slurm, Kubeflow Trainer and SkyPilot give a node, and
a workbench in its place that says what it was given; that is read as the workbench itself reads it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from workbench.pilot.resolve import resolve
from workbench.pilot.sections.train import TrainingLaunch
from workbench.train.nodes import Node, node_of

DEPLOY = Path(__file__).parents[2] / "deploy"
SBATCH = DEPLOY / "slurm" / "train.sbatch"
SKYPILOT_SCHEMAS = Path(__file__).with_name("skypilot_0_14_1.json")
"""``get_task_schema`` and ``_get_single_resources_schema`` of SkyPilot 0.14.1 (Apache-2.0), without
what lists clouds and versions: the package itself asks for other versions of what we have."""
SAYS = """#!/bin/bash
printf '%s\\0' "$MASTER_ADDR" "$MASTER_PORT" "$NODE_RANK" "$WORKBENCH_RUNS" "$@" > {out}/$NODE_RANK
"""
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
for node in 0 1; do SLURM_NODEID=$node "${@:2}"; done
"""


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment whose workbench, srun and scontrol are stand-ins."""
    (tmp_path / "bin").mkdir()
    for name, text in {
        "workbench": SAYS.format(out=shlex.quote(str(tmp_path))),
        "srun": SRUN,
        "scontrol": "#!/bin/bash\nprintf 'first\\nsecond\\n'\n",
    }.items():
        path = tmp_path / "bin" / name
        path.write_text(text, "utf-8")
        path.chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "WORKBENCH": "workbench"}


def started(folder: Path, rank: int) -> tuple[Node | None, TrainingLaunch, list[str]]:
    """What the workbench of that node was started with, as it reads it."""
    address, port, node_rank, runs, *words = (folder / str(rank)).read_text().split("\0")[:-1]
    assert runs == "/runs" and words[:2] == ["stage", "train_qat"]
    pilot, option, value = words[2:]
    assert pilot == "chat.yaml" and option == "--set"
    launch = resolve("workbench:quickstart", ["train.batch_size=16", value]).pilot.train.launch
    where = {"MASTER_ADDR": address, "MASTER_PORT": port, "NODE_RANK": node_rank}
    return node_of(launch, where), launch, words


WANTED = TrainingLaunch(processes=8, nodes=2, strategy="fsdp")


def test_slurm_starts_the_same_command_on_every_node(tools: dict[str, str], tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(SBATCH)]).returncode == 0
    given = {
        "SLURM_JOB_NODELIST": "first,second", "SLURM_JOB_ID": "20007", "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8", "PILOT": "chat.yaml", "WORKBENCH_RUNS": "/runs",
    }  # fmt: skip
    subprocess.run(["bash", str(SBATCH)], env=tools | given, check=True, cwd=tmp_path)
    for rank in (0, 1):
        node, launch, _ = started(tmp_path, rank)
        assert node == Node(rank, 2, "first", 20007) and launch == WANTED
    directives = dict(
        line.removeprefix("#SBATCH --").split("=")
        for line in SBATCH.read_text("utf-8").splitlines()
        if line.startswith("#SBATCH") and "=" in line
    )
    assert (directives["nodes"], directives["gpus-per-node"]) == ("2", "8")
    assert directives["ntasks-per-node"] == "1", "the workbench starts the processes itself"
    if sbatch := shutil.which("sbatch"):
        subprocess.run([sbatch, "--test-only", str(SBATCH)], check=True)


def test_kubeflow_takes_the_train_job_and_it_starts_the_command(
    tools: dict[str, str], tmp_path: Path
) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="the test extra has it")
    manifest = yaml.safe_load((DEPLOY / "kubernetes" / "train.yaml").read_text("utf-8"))
    job = models.TrainerV1alpha1TrainJob.from_dict(manifest)
    assert job.to_dict() == manifest, "a field that a TrainJob does not have would be missing"
    assert manifest["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    trainer = manifest["spec"]["trainer"]
    gpus = int(trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"])
    assert gpus == trainer["numProcPerNode"]
    given = {each["name"]: each["value"] for each in trainer["env"]} | {"PILOT": "chat.yaml"}
    by_runtime = {
        "PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": str(gpus),
        "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "ternary-train-node-0-0",
        "PET_MASTER_PORT": "29400",
    }  # fmt: skip
    command = [*trainer["command"], *trainer["args"]]
    subprocess.run(command, env=tools | given | by_runtime, check=True, cwd=tmp_path)
    node, launch, _ = started(tmp_path, 1)
    assert node == Node(1, 2, "ternary-train-node-0-0", 29400) and launch == WANTED
    (patch,) = manifest["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": given["WORKBENCH_RUNS"]}


def test_skypilot_takes_the_task_and_it_starts_the_command(
    tools: dict[str, str], tmp_path: Path
) -> None:
    task = yaml.safe_load((DEPLOY / "skypilot" / "train.yaml").read_text("utf-8"))
    schemas = json.loads(SKYPILOT_SCHEMAS.read_text("utf-8"))
    jsonschema.validate(task, schemas["task"])
    jsonschema.validate(task["resources"], schemas["resources"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(task | {"nodes": 2}, schemas["task"])
    gpus = task["resources"]["accelerators"].partition(":")[2]
    by_sky = {
        "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NUM_GPUS_PER_NODE": gpus,
    }  # fmt: skip
    given = task["envs"] | {"PILOT": "chat.yaml"}
    subprocess.run(
        ["bash", "-c", task["run"]], env=tools | given | by_sky, check=True, cwd=tmp_path
    )
    node, launch, _ = started(tmp_path, 1)
    assert node == Node(1, 2, "10.0.0.4", 29500) and launch == WANTED
    assert list(task["volumes"]) == [task["envs"]["WORKBENCH_RUNS"]]
    assert subprocess.run(["bash", "-n", "-c", task["setup"]]).returncode == 0
