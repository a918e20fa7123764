"""An existing cluster of several nodes that requires a token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
import yaml
from cluster import Cluster
from session import ROOT, SMALL, wait_for_line

TWO_GROUPS = """
import json, sys
from pathlib import Path

class Files:
    def __init__(self, *_):
        pass

    def serve(self, request):
        import orchestration.workers, soflow.config
        return [orchestration.workers.__file__, soflow.config.__file__]

from orchestration.cluster import connected
from orchestration.config import TrainConfig
from orchestration.workers.group import WorkerGroup

with connected(TrainConfig(address=sys.argv[1]), groups=2) as resources:
    import ray

    before = ray.available_resources()["GPU"]
    groups = [WorkerGroup(resources, Path(sys.argv[2]), name, Files) for name in ("one", "two")]
    files = [path for group in groups for path in group.ask("where?")]
    print(json.dumps([resources.gpus_per_worker, before, ray.available_resources().get("GPU", 0), files]))
    for group in groups:
        group.close()
"""


@pytest.mark.soak  # plug-ins: test_experiments.py; goals: tests/unit/orchestration/sweep/test_search_space.py
def test_plug_ins_and_several_goals_work_together(shared, cluster):
    """An objective, network and dataset in a file of the working directory; several goals and a constraint."""
    shutil.copy(ROOT / "docs" / "examples" / "my_lab.py", shared.storage)
    flags = ["--objective", "my_lab:AnnealedSoFlow", "--network", "my_lab:TinyNetwork", "--dataset", "my_lab:Stripes"]
    flags += ["--evaluation.diagnostics", "my_lab:contrast", "--num-trials", "2", "--max-concurrent", "1"]
    flags += ["--resources.num-workers", "2", "--resources.cpus-per-worker", "2"]  # a node has two
    flags += ["--evaluation.nfe", "1", "4", "--goals", "fid", "time/train_s", "--constraints", "memory/peak_mib<=1e6"]
    sweep = shared.start("sweep_schedule.py", *SMALL, *flags, "--name", "two", "--progress", "plain")
    lines = wait_for_line(sweep, "trial 0 running, step")
    assert len({node for node, _ in cluster.processes("ray::RayTrainWorker")}) == 2
    output, _ = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, "".join(lines) + output
    runs = shared.runs()
    assert runs["two-0001"].data.tags["workers"] == "2"
    table = pd.read_csv(shared.storage / "two" / "trials.csv")
    assert table["feasible"].all()
    assert table["pareto"][0]
    assert table["pareto"][table["time/train_s"].idxmin()]
    assert {"fid", "fid_4nfe", "diagnostics/contrast/rms"} <= set(runs["two-0001"].data.metrics)
    assert runs["two-0001"].data.params["objective.first_fraction"]
    best = yaml.safe_load((shared.storage / "two" / "best.yaml").read_text())
    assert best["objective"]["name"] == "my_lab:AnnealedSoFlow"
    cluster.assert_nothing_left()


@pytest.mark.soak  # two trials at a time: test_sweep.py; workers on both nodes: test_experiments.py
def test_two_sweeps_at_once_use_several_nodes_and_leave_nothing_behind(shared, cluster):
    """With one storage folder and one tracking database; one's three workers do not fit onto a node of two CPUs."""
    flags = [*SMALL, "--training.total-steps", "8", "--num-trials", "2", "--early-stopping.kind", "none"]
    flags += ["--training.batch-size", "30", "--max-concurrent", "1"]
    sweeps = [
        shared.start("sweep_schedule.py", *flags, "--name", f"sweep{workers}", "--resources.num-workers", str(workers))
        for workers in (3, 1)
    ]
    wait_for_line(sweeps[0], "trial 0 running, step")
    workers = Counter(node for node, _ in cluster.processes("ray::RayTrainWorker"))
    assert len(workers) == 2, workers
    for sweep in sweeps:
        rest, _ = sweep.communicate(timeout=600)
        assert sweep.returncode == 0, rest
    for name in ("sweep3", "sweep1"):
        assert shared.study_states(name) == ["COMPLETE"] * 2
        for number in range(2):
            assert [step for step, _ in shared.history(f"{name}-{number:04d}", "fid")] == [4, 8]
    assert {run.info.status for run in shared.runs().values()} == {"FINISHED"}
    cluster.assert_nothing_left()


@pytest.mark.soak  # shares of GPUs: tests/unit/orchestration/test_cluster.py
def test_groups_share_a_gpu_and_run_the_code_of_whoever_started_them(cluster, tmp_path):
    node = cluster.add_node(2, "--num-gpus=1")  # which Ray takes for a GPU
    command = [sys.executable, "-c", TWO_GROUPS, cluster.address, tmp_path]
    # Not from the project's folder, where Ray would let workers look first.
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    cluster.remove_node(node)
    assert ran.returncode == 0, ran.stderr
    share, before, left, files = json.loads(ran.stdout.splitlines()[-1])
    assert (share, before, left) == (0.5, 1, 0)
    # The project is installed where this test runs. Yet what workers import is what was sent to them.
    assert all("py_modules" in path for path in files), files


MEMORY = """
import sys
from pathlib import Path

class Place:
    def __init__(self, *_):
        pass

    def serve(self, request):
        import ray
        return ray.get_runtime_context().get_node_id()

from orchestration.cluster import connected
from orchestration.config import TrainConfig
from orchestration.workers.group import WorkerGroup

resources = {"memory_gib_per_worker": 3}
with connected(TrainConfig(address=sys.argv[1], resources=resources), groups=2) as resources:
    import ray

    groups = [WorkerGroup(resources, Path(sys.argv[2]), name, Place) for name in ("one", "two")]
    places = [group.ask("where?") for group in groups]
    free = {node["NodeID"]: node["Resources"].get("memory", 0) / 2**30 for node in ray.nodes() if node["Alive"]}
    print("GiB:", *(free[place] for place in places))
    for group in groups:
        group.close()
"""


@pytest.mark.soak
def test_workers_go_where_their_memory_is(tmp_path):
    """Two nodes without memory for a worker of 3 GiB, one with memory for two."""
    gib = 2**30
    with Cluster((0,), options=()) as cluster:
        cluster.add_node(4, f"--memory={2 * gib}")
        cluster.add_node(4, f"--memory={8 * gib}")
        environment = os.environ | cluster.env
        command = [sys.executable, "-c", MEMORY, cluster.address, tmp_path]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert "GiB: 8.0 8.0\n" in ran.stdout
