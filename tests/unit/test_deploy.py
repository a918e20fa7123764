"""Launch files in deploy/: valid for their tools as far as this machine has them, and in step with the programs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from orchestration.sweep.config import SweepConfig
from orchestration.terminal.command_line import read_command_line

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def commands() -> dict[str, str]:
    """Commands that start a sweep, by file."""
    job = documents(DEPLOY / "kubernetes" / "sweep" / "job.yaml")[0]["spec"]["entrypoint"]
    sky = documents(DEPLOY / "skypilot.yaml")[0]["run"].replace("\\\n", " ").strip().splitlines()[-1]
    slurm = (DEPLOY / "slurm" / "sweep.sbatch").read_text()
    example = re.search(r"sweep\.sbatch (sweep_schedule\.py .*)", slurm.replace("\\\n# ", ""))
    started = re.search(r'^python "experiments/\$program" (.*) "\$@" &$', slurm, re.MULTILINE)
    ray_up = re.search(r"experiments/sweep_schedule\.py -- (.*) \.\.\.", (DEPLOY / "ray-cluster.yaml").read_text())
    return {
        "job.yaml": job,
        "skypilot.yaml": sky,
        "sweep.sbatch": f"python experiments/{example[1]} {started[1]}",
        "ray-cluster.yaml": f"python experiments/sweep_schedule.py {ray_up[1]}",
    }


@pytest.mark.parametrize(("file", "command"), commands().items())
def test_the_sweeps_that_they_start_have_valid_flags_and_can_resume(file, command, monkeypatch, tmp_path):
    monkeypatch.setenv("SOFLOW_CACHE", str(tmp_path))
    values = {"$BUCKET": "s3://bucket/soflow", "$SKYPILOT_NUM_NODES": "2", "$head:6385": "10.0.0.1:6385"}
    for name, value in values.items():
        command = command.replace(name, value)
    python, program, *flags = shlex.split(command)
    assert (python, program) == ("python", "experiments/sweep_schedule.py")
    config = read_command_line(SweepConfig, "", flags)
    assert config.address is not None
    assert config.name == "big"  # so that the same command resumes


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_objects_name_only_secrets_that_the_page_creates(path):
    created = set(re.findall(r"create secret generic (\w+)", (ROOT / "docs" / "cluster.md").read_text()))
    text = path.read_text()
    used = set(re.findall(r"secret(?:Ref|KeyRef): \{name: (\w+)", text)) | set(re.findall(r"secretName: (\w+)", text))
    assert used <= created
    assert all("kind" in document or "resources" in document for document in documents(path))


def test_ray_versions_and_tokens_are_those_of_the_project():
    [ray] = [Requirement(text) for text in PROJECT["dependencies"] if text.startswith("ray[")]
    for name in ("base/cluster.yaml", "sweep/job.yaml"):
        [spec] = [document["spec"] for document in documents(DEPLOY / "kubernetes" / name)]
        cluster = spec.get("rayClusterSpec", spec)
        assert cluster["rayVersion"] in ray.specifier
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["enableInTreeAutoscaling"] is True
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        assert {group["template"]["spec"]["containers"][0]["image"] for group in groups} == {"soflow"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("name", ["base", "sweep"])
def test_kubectl_builds_them(name):
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / name)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    objects = list(yaml.safe_load_all(built))
    assert all(one["metadata"].get("namespace", "soflow") == "soflow" for one in objects)
    assert "image: soflow\n" not in built  # every image has its registry
    kinds = {one["kind"] for one in objects}
    base = {"Namespace", "ConfigMap", "Service", "StatefulSet", "Deployment", "RayCluster"}
    assert kinds == {"base": base, "sweep": {"RayJob"}}[name]


def test_ray_s_launcher_accepts_its_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    [config] = documents(DEPLOY / "ray-cluster.yaml")
    validate_config(prepare_config(config))
    assert config["available_node_types"]["spot_gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_ray_s_nodes_on_slurm_get_all_their_cores():
    """Slurm gives the steps of a job one core each, whatever the job has, unless they ask (since 22.05)."""
    steps = re.findall(r"^ *srun .*", (DEPLOY / "slurm" / "sweep.sbatch").read_text(), re.MULTILINE)
    assert len(steps) == 2
    assert all('--cpus-per-task="$SLURM_CPUS_PER_TASK"' in step for step in steps)


def test_scripts_are_valid_bash(tmp_path):
    [sky] = documents(DEPLOY / "skypilot.yaml")
    scripts = {"sweep.sbatch": (DEPLOY / "slurm" / "sweep.sbatch").read_text()}
    scripts |= {f"skypilot-{key}": f"#!/bin/bash\n{sky[key]}" for key in ("setup", "run")}
    for name, text in scripts.items():
        path = tmp_path / name
        path.write_text(text)
        subprocess.run(["bash", "-n", str(path)], check=True)
        if shutil.which("shellcheck"):
            # SC1091: it cannot follow .venv/bin/activate; SC2046: a list of process ids is meant to be split.
            subprocess.run(["shellcheck", "--exclude=SC1091,SC2046,SC2155", str(path)], check=True)


def test_the_image_has_both_targets_and_installs_extras_that_exist():
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^FROM .* AS (\w+)$", text, re.MULTILINE) == ["base", "cpu", "cuda"]
    extras = {extra for group in re.findall(r'"\.\[([\w,]+)\]"', text) for extra in group.split(",")}
    assert extras == {"server", "flash"}
    assert extras <= PROJECT["optional-dependencies"].keys()
