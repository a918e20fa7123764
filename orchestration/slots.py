"""Number of worker groups that run at a time, which may follow the size of the cluster."""

from __future__ import annotations

import math
import time
from typing import Any

from orchestration.config import ResourcesConfig

SLOTS_EVERY_S = 5.0
"""Seconds between two looks at the size of the cluster."""


class Slots:
    """Number of worker groups that may run at a time.

    Args:
        resources: of each group.
        groups: the number; None for as many as fit on the cluster, of which it asks every few seconds.
    """

    def __init__(self, resources: ResourcesConfig, groups: int | None):
        self.resources, self.groups = resources, groups
        self._asked, self._fitting = -math.inf, 0

    def __call__(self) -> int:
        if self.groups is not None:
            return self.groups
        if time.monotonic() - self._asked > SLOTS_EVERY_S:
            import ray

            self._asked, self._fitting = time.monotonic(), max(1, groups_that_fit(self.resources, ray.nodes()))
        return self._fitting


def groups_that_fit(resources: ResourcesConfig, nodes: list[dict[str, Any]]) -> int:
    """Count the worker groups that fit on the living nodes, each worker on one node.

    Args:
        nodes: as `ray.nodes` returns them.
    """
    needs, workers = resources.per_worker(), 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            workers += min(int(has.get(kind, 0) / need + 1e-9) for kind, need in needs.items())
    return workers // resources.num_workers
