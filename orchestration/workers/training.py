"""The worker's side of training: holds one run at a time and takes it from report to report.

A request says all there is to know ("train this configuration in this folder from step k to its next report"), so that
a restarted worker can serve it as well as the one that was lost.
"""

from __future__ import annotations

import functools
import gc
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.config import ResourcesConfig
from orchestration.workers import mailbox
from orchestration.workers.group import WorkerGroup

if TYPE_CHECKING:
    import torch

    from soflow.data.base import DataSource
    from soflow.evaluation.fidelity import Evaluator


@dataclass(frozen=True)
class Request:
    """Train `config` in `directory` from its checkpoint at `start` (0: from scratch) to the next report."""

    config: dict[str, Any]
    directory: str
    start: int
    micro_batches: int = 1
    """In how many parts each worker takes its samples of a step."""
    taken_over: int = 0
    """Step whose checkpoint is another run's, of another configuration; 0 if none is."""


@dataclass(frozen=True)
class Answer:
    """What came of a request: a report, or the reason why there is none."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    grids: dict[str, Path] = field(default_factory=dict)
    """PNGs of samples by the name of their pictures."""
    finished: bool = False
    failure: str | None = None
    """One line; None if all went well."""
    out_of_memory: bool = False
    """Whether it failed because an optimiser step did not fit into memory."""
    details: str = ""
    """The traceback of an unexpected failure."""


def training_group(
    resources: ResourcesConfig, folder: Path, name: str, restarts: int = mailbox.RESTARTS
) -> WorkerGroup:
    """A group of workers that train; reference features are cached beside `folder`, for all sweeps and runs there."""
    make_server = functools.partial(TrainingWorker, str(folder.parent / "reference"))
    return WorkerGroup(resources, folder, name, make_server, restarts=restarts)


class TrainingWorker:
    """One worker's state between requests: the run that it holds, if any. Nothing else is carried over.

    Args:
        cache: folder for reference features.
    """

    def __init__(self, cache: str, device: torch.device, rank: int, world_size: int):
        self.device, self.rank, self.world_size, self.cache = device, rank, world_size, Path(cache)
        self._sources: dict[str, DataSource] = {}
        self._evaluators: dict[str, Evaluator] = {}
        self._request: Request | None = None
        self._run = None
        self._answered_at: float | None = None

    def serve(self, request: Request) -> Answer:
        """Raises any error that may have left the other workers of a group waiting; else failures are answers."""
        from soflow.training.trainer import NonFiniteLoss

        took = time.perf_counter()
        try:
            fresh = self._prepare(request)
            waited = {"time/handover_s": time.perf_counter() - (self._answered_at or took)} if fresh else {}
            report = self._run.advance()
            while self._run.trainer.step <= request.start:  # it had to go back to an older checkpoint
                report = self._run.advance()
        except NonFiniteLoss as error:  # seen by all workers alike
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
            return Answer(self._run.trainer.step)
        return Answer(report.step, report.metrics | waited, report.facts, report.grids, report.finished)

    def _prepare(self, request: Request) -> bool:
        """Hold the run of the request at its start, built anew unless it is just there; True if it is a new one."""
        if self._run is not None and replace(self._request, start=self._run.trainer.step) == request:
            return False
        from soflow.config import parse
        from soflow.training.run import TrainingRun

        self._run = None  # frees its memory first
        if request.micro_batches > 1:  # memory is scarce
            _give_back_memory()
        config = parse(request.config)
        self._run = TrainingRun(
            config,
            self._source(config),
            Path(request.directory),
            self.device,
            self._evaluator(config),
            request.start,
            self.rank,
            self.world_size,
            request.micro_batches,
            request.taken_over,
        )
        self._request = request
        return request.start == 0

    def _source(self, config) -> DataSource:
        """The configured data; kept for the next run, since nothing changes it."""
        from soflow.data import open_source

        key = config.dataset.model_dump_json()
        if key not in self._sources:
            self._sources = {key: open_source(config.dataset)}
        return self._sources[key]

    def _evaluator(self, config) -> Evaluator:
        """The configured evaluation with its reference features; kept for the next run likewise."""
        from soflow.evaluation.fidelity import Evaluator
        from soflow.evaluation.moments import Workers

        key = config.dataset.model_dump_json() + config.evaluation.model_dump_json()
        if key not in self._evaluators:
            workers = Workers(self.device, self.rank, self.world_size)
            self._evaluators = {key: Evaluator(self._source(config), config, self.device, self.cache, workers)}
        return self._evaluators[key]

    def failure(self, request: Request, error: Exception) -> Answer:
        """The answer to a request that ended in an unexpected error, made where that was caught."""
        from soflow.training.out_of_memory import StepOutOfMemory

        if isinstance(error, StepOutOfMemory):
            return Answer(request.start, failure=str(error), out_of_memory=True)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Answer(request.start, failure=reason, details=traceback.format_exc())


def _give_back_memory() -> None:
    """Free what a failed step left behind, in reference cycles and in the caching allocator."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
