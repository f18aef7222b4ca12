"""What starts ranks: batch scripts that our own lint finds nothing in, Kubernetes objects that their schemas take.

The schemas are the published CRDs without their descriptions: JobSet 08dfbdf of August 2026,
config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml, and Kubeflow Trainer 8c0f505 of August 2026,
manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml (both Apache-2.0).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from export_plans import SCHEDULED, plan_of

from launcher.cli import main
from launcher.export import jobset, rankfile, skypilot, srun, torchx, trainjob
from launcher.export.target import Target
from launcher.planner.record import Plan

HERE = Path(__file__).parent
CRDS = HERE / "options"
SKYPILOT = os.environ.get("SKYPILOT")
KINDS: dict[str, tuple[Target, str]] = {
    "jobset": (jobset.TARGET, jobset.FILE),
    "trainjob": (trainjob.TARGET, trainjob.FILE),
}
LEAVES = ("cluster.num_nodes=4", "cluster.nodes_per_leaf=2", "layout.dp=32")


def document(kind: str, plan: Plan) -> dict[str, Any]:
    target, file = KINDS[kind]
    return yaml.safe_load(target.write(plan).files[file])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*SCHEDULED, "data first"])
def test_our_lint_finds_nothing_in_the_batch_script(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / srun.JOB
    script.write_text(srun.write(plan_of(name)).files[srun.JOB])
    code = main(["lint", str(script)])
    assert code == 0, capsys.readouterr().out


def with_hosts(plan: Plan) -> Plan:
    hosts = tuple(f"gpu{9 - node}" for node in range(plan.placement.num_nodes))
    return Plan(plan.job, plan.layout, {}, (), plan.options, hosts=hosts)


def test_known_hosts_get_their_tasks_in_the_plans_order() -> None:
    files = srun.write(with_hosts(plan_of("zero3"))).files
    assert files[srun.TASKS].split() == ["gpu9"] * 8 + ["gpu8"] * 8
    assert "--distribution=arbitrary" in files[srun.JOB] and "SLURM_HOSTFILE" in files[srun.JOB]


def test_the_rank_file_shares_out_the_cores_of_a_host() -> None:
    lines = rankfile.write(with_hosts(plan_of("zero3"))).files[rankfile.RANKFILE].splitlines()
    assert lines[0] == "rank 0=gpu9 slot=0-15"
    assert lines[15] == "rank 15=gpu8 slot=112-127"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULED)
def test_a_kubernetes_object_has_nodes_ranks_and_gpus(kind: str, name: str) -> None:
    plan = plan_of(name)
    found = document(kind, plan)
    if kind == "trainjob":
        trainer = found["spec"]["trainer"]
        assert (trainer["numNodes"], trainer["numProcPerNode"]) == (plan.placement.num_nodes, 8)
        assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": 8}
        return
    (group,) = found["spec"]["replicatedJobs"]
    pods = group["replicas"] * group["template"]["spec"]["completions"]
    assert pods == plan.placement.num_nodes
    container = group["template"]["spec"]["template"]["spec"]["containers"][0]
    assert f"--nnodes {pods} --nproc-per-node 8" in container["command"][-1]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_each_job_of_a_jobset_takes_a_leaf_and_its_nodes_are_numbered_through() -> None:
    found = document("jobset", plan_of("zero3", *LEAVES))
    assert found["metadata"]["annotations"] == {jobset.EXCLUSIVE: jobset.LEAF_LABEL}
    (group,) = found["spec"]["replicatedJobs"]
    spec = group["template"]["spec"]
    assert (group["replicas"], spec["completions"], spec["completionMode"]) == (2, 2, "Indexed")
    command = spec["template"]["spec"]["containers"][0]["command"][-1]
    expression = re.search(r"JOB_INDEX \* (\d+) \+ POD_INDEX", command)
    assert expression is not None
    assert [job * int(expression[1]) + pod for job in range(2) for pod in range(2)] == [0, 1, 2, 3]
    assert "llama2-13b-leaf-0-0.llama2-13b" in command


def test_leaves_that_would_be_taken_in_part_are_refused() -> None:
    plan = plan_of("zero3", "cluster.num_nodes=3", "cluster.nodes_per_leaf=2", "layout.dp=24", "train.global_batch=96")
    (problem,) = jobset.cannot(plan.job, plan.layout)
    assert "set cluster.num_nodes=2" in problem


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULED)
def test_the_published_schema_takes_the_object(kind: str, name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    crd = json.loads((CRDS / f"{kind}_crd.json").read_text())
    found, schema = document(kind, plan_of(name)), closed(crd["schema"])
    assert found["apiVersion"] == f"{crd['group']}/{crd['version']}"
    reader = jsonschema.validators.validator_for(schema)(schema)  # jsonschema.validate reads the schema each time
    reader.validate(found)
    found["spec"]["nothingOfTheKind"] = 1
    with pytest.raises(jsonschema.ValidationError):
        reader.validate(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_schema_is_one(kind: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = closed(json.loads((CRDS / f"{kind}_crd.json").read_text())["schema"])
    jsonschema.validators.validator_for(schema).check_schema(schema)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULED)
def test_kubeflows_own_classes_read_the_object(kind: str, name: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", exc_type=ImportError)
    read = {"jobset": models.JobsetV1alpha2JobSet, "trainjob": models.TrainerV1alpha1TrainJob}[kind].from_dict
    plan = plan_of(name)
    found = document(kind, plan)
    own = read(found)
    assert is_within(found, own.to_dict())  # each key is one of theirs; they add defaults, as a port's protocol
    nodes = own.spec.trainer.num_nodes if kind == "trainjob" else sum(
        job.replicas * job.template.spec.parallelism for job in own.spec.replicated_jobs
    )  # fmt: skip
    assert nodes == plan.placement.num_nodes


def is_within(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(key in theirs and is_within(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(is_within, ours, theirs))
    return bool(ours == theirs)


def closed(schema: Any) -> Any:
    """The schema with unknown keys refused, as an API server prunes them."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    keeps = "x-kubernetes-preserve-unknown-fields" in found or "metadata" in found.get("properties", {})
    if found.get("type") == "object" and "properties" in found and not keeps:
        found["additionalProperties"] = False
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
    return found


def test_skypilot_asks_for_the_gpus_by_its_own_name() -> None:
    found = yaml.safe_load(skypilot.write(plan_of("zero3")).files[skypilot.TASK])
    assert (found["num_nodes"], found["resources"]) == (2, {"accelerators": "A100-80GB:8"})
    assert "--nnodes 2 --nproc-per-node 8" in found["run"] and "SKYPILOT_NODE_RANK" in found["run"]
    assert found["envs"]["LAUNCHER_DP"] == "16"


@pytest.mark.slow
@pytest.mark.skipif(SKYPILOT is None, reason="set SKYPILOT to a python that has skypilot, or run .ci/stacks")
@pytest.mark.parametrize("name", SCHEDULED)
def test_skypilots_own_classes_read_nodes_gpus_and_command(name: str, tmp_path: Path) -> None:
    plan = plan_of(name)
    export = skypilot.write(plan)
    for file, text in export.files.items():
        (tmp_path / file).write_text(text)
    command = [str(SKYPILOT), HERE / "skypilot_reads.py", tmp_path / skypilot.TASK]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True,
                          text=True, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    read = json.loads(done.stdout.splitlines()[-1])
    assert (read["num_nodes"], read["accelerators"]) == (plan.placement.num_nodes, {"A100-80GB": 8})
    assert {axis: read["envs"][f"LAUNCHER_{axis}"] for axis in ("TP", "PP", "DP", "CP")} == {
        axis: str(getattr(plan.layout, axis.lower())) for axis in ("TP", "PP", "DP", "CP")
    }
    assert f"--nnodes {read['num_nodes']} --nproc-per-node 8" in read["run"]


@pytest.mark.parametrize("name", SCHEDULED)
def test_torchxs_own_component_reads_nodes_and_ranks(name: str) -> None:
    dist = pytest.importorskip("torchx.components.dist", exc_type=ImportError)
    from torchx.specs.builders import materialize_appdef

    plan = plan_of(name)
    (role,) = materialize_appdef(dist.ddp, torchx.words(plan)[1:]).roles
    assert (role.num_replicas, role.resource.gpu) == (plan.placement.num_nodes, 8)
    assert "--nproc_per_node 8" in " ".join(role.args)
    assert role.env["LAUNCHER_TP"] == str(plan.layout.tp)
