"""Groups of warm workers: what becomes of a request, and of the group, when serving it goes wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIO = Path(__file__).with_name("group_scenario.py")


# What all workers meet alike, and what the loss of one does to the others: tests/unit/orchestration/workers/
# test_mailbox.py. With Ray: test_sweep.py has a trial that fails on warm workers, test_experiments.py the loss of one.
@pytest.mark.soak
def test_a_bad_request_leaves_the_group_warm_and_a_lost_worker_costs_only_time(cluster, tmp_path):
    command = [sys.executable, SCENARIO, cluster.address, tmp_path, "alike", "lost"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])
    assert seen["first"]["sum"] == 3
    assert seen["alike"] == "ValueError: cannot be served"
    assert seen["after alike"] == seen["first"], "the group did not survive"
    # Rank 0 met a broken collective: not an answer, since it was the echo of rank 1's death.
    assert seen["lost"]["sum"] == 3
    assert seen["lost"]["pid"] != seen["first"]["pid"]
    assert seen["after lost"] == seen["lost"]


@pytest.mark.soak
def test_workers_that_hang_while_they_start_are_replaced(cluster, tmp_path):
    limits = {f"RAY_TRAIN_WORKER_{name}_TIMEOUT_S": "15" for name in ("GROUP_START", "HEALTH_CHECK")}
    command = [sys.executable, SCENARIO, cluster.address, tmp_path]
    ran = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | limits)
    stopped = cluster.kill("ray::RayTrainWorker", random.choice, signal.SIGSTOP)
    output, _ = ran.communicate(timeout=240)
    assert ran.returncode == 0
    first = json.loads(output.splitlines()[-1])["first"]
    assert first["sum"] == 3
    assert first["pid"] != stopped


HOLDERS = """
import sys
import ray
from ray.util.placement_group import placement_group, placement_group_table
from orchestration.workers.placement import free_placement_groups

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=0)
class Holder:
    def hold(self):
        self.group = placement_group([{"CPU": 1}])
        ray.get(self.group.ready())
        return self.group.id.hex()

    def live(self):
        pass

mine, living, dead = placement_group([{"CPU": 1}]), Holder.remote(), Holder.remote()
names = {mine.id.hex(): "mine", ray.get(living.hold.remote()): "living", ray.get(dead.hold.remote()): "dead"}
held = lambda: sorted(
    names[key] for key, group in placement_group_table().items() if key in names and group["state"] != "REMOVED"
)
ray.kill(dead)
while True:
    try:
        ray.get(dead.live.remote())
    except ray.exceptions.RayActorError:
        break
print(*held())
free_placement_groups()
print(*held())
"""


def test_what_a_dead_actor_has_reserved_is_freed_and_nothing_else(cluster):
    command = [sys.executable, "-c", HOLDERS, cluster.address]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.stdout.splitlines() == ["dead living mine", "living mine"], ran.stderr
