"""Slots that measure points at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from orchestration.checkpoint_sweep.worker import CheckpointWorker, Measure, Measured, Subject
from orchestration.config import ResourcesConfig
from orchestration.workers.group import RequestFailed, WorkerGroup


class PointWorkers:
    """Slots, each with a warm worker group of its own, which starts when it is needed."""

    def __init__(self, resources: ResourcesConfig, folder: Path, subject: Subject, slots: int):
        self.slots = slots
        self._resources, self._folder, self._make_server = resources, folder, partial(CheckpointWorker, subject)
        self._groups: list[WorkerGroup] = []
        self._free: list[WorkerGroup] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="slot")

    def measure(self, request: Measure) -> Future[Measured]:
        """Measure a point in a free slot."""
        return self._pool.submit(self._ask, request)

    def _ask(self, request: Measure) -> Measured:
        with self._lock:
            if not self._free:
                name = f"slot-{len(self._groups)}"
                self._groups.append(WorkerGroup(self._resources, self._folder, name, self._make_server))
                self._free.append(self._groups[-1])
            group = self._free.pop()
        try:
            return group.ask(request)
        except RequestFailed as error:
            return Measured({}, {}, str(error))
        finally:
            with self._lock:
                self._free.append(group)

    def close(self) -> None:
        """End the workers, all at once."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with ThreadPoolExecutor(max(1, len(self._groups))) as closing:
            for group in self._groups:
                closing.submit(group.close)
