"""A group of two workers that really wait for each other, and the faults named on the command line; prints JSON.

python group_scenario.py ADDRESS FOLDER alike lost
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from orchestration.cluster import connected
from orchestration.config import TrainConfig
from orchestration.workers.group import RequestFailed, WorkerGroup


class Adder:
    """Adds up ranks + 1 by a collective call. Before that, does what a request says to those it names."""

    def __init__(self, device, rank: int, workers: int):
        self.rank = rank

    def serve(self, request: dict) -> dict:
        import torch
        import torch.distributed as dist

        if self.rank in request.get("raise_on", []):
            raise ValueError("cannot be served")
        if self.rank in request.get("die_on", []) and (request.get("always") or not Path(request["died"]).exists()):
            Path(request["died"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        total = torch.tensor(self.rank + 1)
        dist.all_reduce(total)
        return {"sum": total.item(), "pid": os.getpid()}

    def failure(self, request: dict, error: Exception) -> str:
        return f"{type(error).__name__}: {error}"


def scenario(address: str, folder: Path, faults: list[str]) -> dict:
    requests = {
        "alike": {"raise_on": [0, 1]},
        "alone": {"raise_on": [1]},
        "lost": {"die_on": [1], "died": str(folder / "died")},
        "deadly": {"die_on": [1], "died": str(folder / "died"), "always": True},
    }
    config = TrainConfig(address=address, resources={"num_workers": 2})
    seen = {}
    with connected(config, groups=1) as resources:
        group = WorkerGroup(resources, folder, "group", Adder)
        seen["first"] = group.ask({})
        for fault in faults:
            begin = time.monotonic()
            try:
                seen[fault] = group.ask(requests[fault])
            except RequestFailed as error:
                seen[fault] = str(error)
            seen[f"{fault}_s"] = time.monotonic() - begin
            seen[f"after {fault}"] = group.ask({})
        group.close()
    return seen


if __name__ == "__main__":
    print(json.dumps(scenario(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])))
