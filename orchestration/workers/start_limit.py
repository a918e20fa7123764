"""Limit of the time in which the workers of a group start.

Ray Train replaces workers that die, and running ones that do not answer. For a worker that hangs while it starts, its
controller would wait without end. Ending the controller's process ends its workers, and `WorkerGroup` then starts anew.
"""

from __future__ import annotations

import os
import sys
import threading

from ray.train.v2._internal.execution.callback import WorkerGroupCallback

LIMITS = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S")
"""Settings of Ray Train (orchestration.cluster.RAY_SETTINGS): seconds of waiting for resources before it tries again,
and for a worker's answer."""


def start_limit_s() -> float:
    """Return the seconds from the request for resources to the start of the loop in all workers."""
    return sum(float(os.environ[name]) for name in LIMITS)


class StartLimit(WorkerGroupCallback):
    """Callback in Ray Train's controller that ends it if its workers do not start in time."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def before_worker_group_start(self, worker_group_context) -> None:
        self._cancel()  # of an attempt that failed
        self._timer = threading.Timer(self._seconds, _end_process, (self._seconds,))
        self._timer.daemon = True
        self._timer.start()

    def after_worker_group_training_start(self, worker_group) -> None:
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _end_process(seconds: float) -> None:
    print(f"the training workers have not started within {seconds:g} s; starting others", file=sys.stderr, flush=True)
    os._exit(1)  # the thread that waits for the workers cannot be interrupted
