"""The limit of a group's start: counted from the request for resources to the start of all workers, and by attempt."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import REPOSITORY
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from orchestration.cluster import RAY_SETTINGS
from orchestration.workers.start_limit import LIMITS, start_limit_s

SCRIPT = """
import time
from orchestration.workers.start_limit import StartLimit

limit = StartLimit(0.5)
for attempt in range(3):  # each is given the whole time
    limit.before_worker_group_start(None)
    time.sleep(0.3)
if {starts}:
    limit.after_worker_group_training_start(None)
time.sleep(1)
print("alive")
"""


@pytest.mark.parametrize("starts", [True, False])
def test_a_process_ends_if_its_workers_do_not_start_in_time(starts):
    command = [sys.executable, "-c", SCRIPT.format(starts=starts)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert (ended.returncode, ended.stdout) == ((0, "alive\n") if starts else (1, ""))
    assert ("have not started within 0.5 s" in ended.stderr) is not starts


def test_ray_train_still_calls_these_hooks():
    """Without the second, the limit would end every healthy group."""
    for name in ("before_worker_group_start", "after_worker_group_training_start"):
        assert callable(getattr(WorkerGroupCallback, name))


def test_the_limit_is_the_sum_of_ray_trains(monkeypatch):
    for name in LIMITS:
        monkeypatch.setenv(name, RAY_SETTINGS[name])
    assert start_limit_s() == 420
