"""A sweep on a cluster of several nodes that somebody else started and that asks for a token."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from cluster import Cluster
from session import SMALL, wait_for_line

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, a node with two CPUs and what Ray takes for a GPU, a node with one CPU."""
    with Cluster((0,)) as cluster, pytest.MonkeyPatch.context() as patch:
        cluster.add_node(2, "--num-gpus=1")
        cluster.add_node(1)
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield cluster


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


def test_groups_share_a_gpu_and_run_the_code_of_whoever_started_them(cluster, tmp_path):
    command = [sys.executable, "-c", TWO_GROUPS, cluster.address, tmp_path]
    # Not from the project's folder, where Ray would let workers look first.
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    share, before, left, files = json.loads(ran.stdout.splitlines()[-1])
    assert (share, before, left) == (0.5, 1, 0)
    # The project is installed where this test runs. Yet what workers import is what was sent to them.
    assert all("py_modules" in path for path in files), files


def test_two_sweeps_at_once_use_several_nodes_and_do_not_disturb_each_other(session, cluster):
    """With one storage folder and one tracking database; their groups take all CPUs of two nodes."""
    flags = [*SMALL, "--training.total-steps", "40", "--num-trials", "3", "--early-stopping.kind", "none"]
    flags += ["--address", cluster.address, "--resources.gpus-per-worker", "0"]
    sweeps = [
        session.start("sweep_schedule.py", *flags, "--name", f"sweep{at_a_time}", "--max-concurrent", str(at_a_time))
        for at_a_time in (2, 1)
    ]
    for sweep in sweeps:
        wait_for_line(sweep, "running, step")
    deadline = time.monotonic() + 60  # one sweep's second group may still be starting
    while (nodes := {node for node, _ in cluster.processes("ray::RayTrainWorker")}) != {1, 2}:
        assert time.monotonic() < deadline, nodes
        time.sleep(0.1)
    for sweep in sweeps:
        rest, _ = sweep.communicate(timeout=240)
        assert sweep.returncode == 0, rest
    for name in ("sweep2", "sweep1"):
        assert session.study_states(name) == ["COMPLETE"] * 3
        for number in range(3):
            assert [step for step, _ in session.history(f"{name}-{number:04d}", "fid")] == list(range(4, 41, 4))
    assert {run.info.status for run in session.runs().values()} == {"FINISHED"}
    assert cluster.ask("ray.available_resources().get('CPU')") == "3.0"
