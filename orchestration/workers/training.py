"""The worker's side of training: keeps one run at a time and trains it from report to report.

A request is complete in itself ("train this configuration in this folder from step k to its next report"), so that a
restarted worker can serve it as well as the one that was lost.
"""

from __future__ import annotations

import functools
import gc
import os
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.cluster import PREEMPTION_WATCHER
from orchestration.config import ResourcesConfig
from orchestration.store.location import on_this_machine
from orchestration.store.runs import Uploads, fetch_run
from orchestration.workers import mailbox
from orchestration.workers.group import WorkerGroup
from orchestration.workers.messages import Answer, Request
from soflow.config import RunConfig

if TYPE_CHECKING:
    import torch

    from soflow.data.base import DataSource
    from soflow.evaluation.fidelity import Evaluator
    from soflow.training.run import TrainingRun


def training_group(
    resources: ResourcesConfig, folder: Path, name: str, restarts: int = mailbox.RESTARTS
) -> WorkerGroup:
    """Start a group of training workers; reference features are cached beside `folder`, for all sweeps and runs."""
    make_server = functools.partial(TrainingWorker, str(folder.parent / "reference"))
    return WorkerGroup(resources, folder, name, make_server, restarts=restarts)


UPLOAD_S = 60.0
"""Seconds that the end of a group waits for its last uploads."""


class TrainingWorker:
    """State of one worker between requests: its current run. Nothing else is carried over.

    Args:
        cache: folder for reference features.
    """

    def __init__(self, cache: str, device: torch.device, rank: int, world_size: int):
        self.device, self.rank, self.world_size = device, rank, world_size
        self.cache = on_this_machine(Path(cache))
        self._sources: dict[str, DataSource] = {}
        self._evaluators: dict[str, Evaluator] = {}
        self._request: Request | None = None
        self._run: TrainingRun | None = None
        self._answered_at: float | None = None
        self._uploads = Uploads()

    def serve(self, request: Request) -> Answer:
        """Train to the next report.

        Failures become answers. Errors that may have left the other workers of a group waiting are raised.
        """
        from soflow.training.trainer import NonFiniteLoss

        request = replace(request, directory=on_this_machine(request.directory))
        try:
            run, fresh = self._prepare(request)
            waited = {}
            if fresh and self._answered_at is not None:  # not a worker's first trial
                waited["time/handover_s"] = time.perf_counter() - self._answered_at
            report = run.advance()
            while run.trainer.step <= request.start:  # it resumed from an older checkpoint
                report = run.advance()
        except NonFiniteLoss as error:  # raised on all workers alike
            self._run = None
            return Answer(request.start, failure=str(error))
        except Exception as error:
            self._run = None
            if self.world_size > 1:
                raise
            return self.failure(request, error)
        finally:
            self._answered_at = time.perf_counter()
        if report is None:
            return Answer(run.trainer.step)
        self._uploads.add(request.directory)
        if report.finished:  # others may need its files now
            self._uploads.wait()
        return Answer(report.step, replace(report, metrics=report.metrics | waited))

    def _prepare(self, request: Request) -> tuple[TrainingRun, bool]:
        """Make the request's run the current one, at its start; return it, and True if it is a new run."""
        if self._run and self._request and replace(self._request, start=self._run.trainer.step) == request:
            return self._run, False
        from soflow.cost.utilization import Utilization
        from soflow.training.run import TrainingRun

        self._run = None  # frees its memory first
        if request.micro_batches > 1:  # memory is scarce
            _free_memory()
        fetch_run(request.directory)
        config = request.config
        self._run = TrainingRun(
            config,
            self._source(config),
            request.directory,
            self.device,
            self._evaluator(config),
            request.start,
            self.rank,
            self.world_size,
            request.micro_batches,
            Utilization(config, self.device, self.world_size).metrics,
            preemption_announced,
            functools.partial(self._uploads.add, request.directory),
        )
        self._request = request
        return self._run, request.start == 0

    def _source(self, config: RunConfig) -> DataSource:
        """Open the configured data, or reuse the previous run's."""
        from soflow.data import open_source

        key = config.dataset.model_dump_json()
        if key not in self._sources:
            self._sources = {key: open_source(config.dataset)}
        return self._sources[key]

    def _evaluator(self, config: RunConfig) -> Evaluator:
        """Build the configured evaluator with its reference features, or reuse the previous run's."""
        from soflow.evaluation.fidelity import Evaluator
        from soflow.evaluation.moments import Workers

        key = config.dataset.model_dump_json() + config.evaluation.model_dump_json()
        if key not in self._evaluators:
            workers = Workers(self.device, self.rank, self.world_size)
            self._evaluators = {key: Evaluator(self._source(config), config, self.device, self.cache, workers)}
        return self._evaluators[key]

    def close(self) -> None:
        """Finish the uploads: the last report of a trial that was stopped may be under way."""
        self._uploads.wait(UPLOAD_S)

    def failure(self, request: Request, error: Exception) -> Answer:
        """Make the answer to a request that raised an unexpected error; called while handling that error."""
        from soflow.training.out_of_memory import StepOutOfMemory

        if isinstance(error, StepOutOfMemory):
            return Answer(request.start, failure=str(error), out_of_memory=True)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Answer(request.start, failure=reason, details=traceback.format_exc())


def preemption_announced() -> bool:
    """Check whether the cluster has announced that it will take a node of this group; on all workers alike."""
    if os.environ.get(PREEMPTION_WATCHER) != "1":
        return False
    from ray.train import get_preemption_info

    return get_preemption_info() is not None


def _free_memory() -> None:
    """Free memory that a failed step left in reference cycles and in the caching allocator."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
