"""Warm groups of Ray Train workers: started once, then given run after run.

Starting a TorchTrainer takes 15 to 30 seconds, most of it process starts and imports. Here one TorchTrainer's workers
stay in a loop and take requests from a mailbox. A request says all there is to know ("train this configuration in this
folder from step k to its next report"), so that a restarted worker can serve it as well as the one that was lost.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from orchestration.config import ResourcesConfig

if TYPE_CHECKING:
    import torch

    from soflow.data import DataSource
    from soflow.evaluation.fidelity import Evaluator

POLL_S = 10.0
"""How long a worker's or a group's question to the mailbox waits for an answer before it is asked again."""
JOIN_S = 15.0
"""How long closing waits for the workers to leave by themselves."""
GROUP_RESTARTS = 20
"""Losses of a worker that a group survives."""


@dataclass(frozen=True)
class Request:
    """Train `config` in `directory` from its checkpoint at `start` (0: from scratch) to the next report."""

    config: dict[str, Any]
    directory: str
    start: int


@dataclass(frozen=True)
class Answer:
    """What came of a request: a report, or the reason why there is none."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    grid: str | None = None
    finished: bool = False
    failure: str | None = None
    """One line; None if all went well."""
    details: str = ""
    """The traceback of an unexpected failure."""


class WorkerGroupError(RuntimeError):
    """The group of workers is gone and cannot be restarted."""


@ray.remote(num_cpus=0)
class Mailbox:
    """Between one group's owner, who posts requests, and its workers, who all take each request in turn."""

    def __init__(self):
        self._number, self._request, self._answer, self._closed = 0, None, None, False
        self._changed = asyncio.Condition()

    async def post(self, request: Request) -> int:
        async with self._changed:
            self._number, self._request, self._answer = self._number + 1, request, None
            self._changed.notify_all()
            return self._number

    async def take(self, after: int) -> tuple[int, Request] | None:
        """The first unanswered request newer than number `after`, None if there was none for a while."""

        def ready() -> bool:
            return self._closed or (self._number > after and self._answer is None)

        if not await self._wait(ready):
            return None
        return (-1, None) if self._closed else (self._number, self._request)

    async def answer(self, number: int, answer: Answer) -> None:
        """The first answer counts: one worker's failure is not replaced by another's success."""
        async with self._changed:
            if number == self._number and self._answer is None:
                self._answer = answer
                self._changed.notify_all()

    async def read(self, number: int) -> Answer | None:
        await self._wait(lambda: self._number == number and self._answer is not None)
        return self._answer if self._number == number else None

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def _wait(self, condition) -> bool:
        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(condition), POLL_S)
        except asyncio.TimeoutError:
            return False
        return True


class WorkerGroup:
    """A TorchTrainer whose workers serve requests until `close`. Used in any process connected to Ray.

    Args:
        folder: absolute path of the sweep or run, seen by all nodes. Reference features are cached beside it.
        name: of the group, unique in `folder`.
    """

    def __init__(self, resources: ResourcesConfig, folder: Path, name: str):
        self._mailbox = Mailbox.remote()
        self._error: BaseException | None = None
        trainer = _trainer(resources, folder, name, self._mailbox)
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name=name, daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> Answer:
        """Post a request and wait for its answer; a worker lost meanwhile is replaced and starts the request anew.

        Raises:
            WorkerGroupError: if the group is gone for good.
        """
        number = ray.get(self._mailbox.post.remote(request))
        while (answer := ray.get(self._mailbox.read.remote(number))) is None:
            if not self._thread.is_alive():
                raise WorkerGroupError(f"the training workers are gone: {self._error or 'they ended by themselves'}")
        return answer

    def close(self) -> None:
        """Let the workers leave, and free their resources."""
        ray.get(self._mailbox.close.remote())
        self._thread.join(JOIN_S)
        ray.kill(self._mailbox)

    def _fit(self, trainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # whatever ended the group is told to whoever asks it next
            self._error = error


def _trainer(resources: ResourcesConfig, folder: Path, name: str, mailbox):
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = resources.gpus_per_worker > 0
    per_worker = {"CPU": resources.cpus_per_worker} | ({"GPU": resources.gpus_per_worker} if use_gpu else {})
    return TorchTrainer(
        serve,
        train_loop_config={
            "mailbox": mailbox,
            "threads": resources.cpus_per_worker,
            "cache": str(folder.parent / "reference"),
        },
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers, use_gpu=use_gpu, resources_per_worker=per_worker
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu and resources.gpus_per_worker >= 1 else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder / "workers"),
            failure_config=FailureConfig(max_failures=GROUP_RESTARTS),
        ),
    )


def serve(loop_config: dict[str, Any]) -> None:
    """The worker's loop: take a request, train to the report, answer; until the mailbox closes."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    torch.set_num_threads(loop_config["threads"])
    mailbox, context = loop_config["mailbox"], get_context()
    worker = Worker(get_device(), context.get_world_rank(), context.get_world_size(), Path(loop_config["cache"]))
    number = 0
    while number >= 0:
        message = ray.get(mailbox.take.remote(number))
        if message is None or message[0] < 0:
            number = number if message is None else -1
            continue
        number, request = message
        try:
            answer = worker.serve(request)
        except Exception as error:
            # The other workers of this group may be waiting in a collective call: only a restart frees them.
            ray.get(mailbox.answer.remote(number, _failure(request, error)))
            raise
        if worker.rank == 0:
            ray.get(mailbox.answer.remote(number, answer))


class Worker:
    """One worker's state between requests: the run that it holds, if any. Nothing else is carried over."""

    def __init__(self, device: torch.device, rank: int, world_size: int, cache: Path):
        self.device, self.rank, self.world_size, self.cache = device, rank, world_size, cache
        self._sources: dict[str, DataSource] = {}
        self._evaluators: dict[str, Evaluator] = {}
        self._request: Request | None = None
        self._run = None
        self._answered_at: float | None = None

    def serve(self, request: Request) -> Answer:
        """Raises any error that may have left the other workers of a group waiting; else failures are answers."""
        from soflow.training import NonFiniteLoss

        took = time.perf_counter()
        try:
            fresh = self._prepare(request)
            waited = {"time/handover_s": time.perf_counter() - (self._answered_at or took)} if fresh else {}
            report = self._run.advance()
        except NonFiniteLoss as error:  # seen by all workers alike
            self._run = None
            return Answer(request.start, failure=str(error))
        except Exception as error:
            self._run = None
            if self.world_size > 1:
                raise
            return _failure(request, error)
        finally:
            self._answered_at = time.perf_counter()
        if report is None:
            return Answer(self._run.trainer.step)
        return Answer(report.step, report.metrics | waited, report.facts, str(report.grid), finished=self._run.finished)

    def _prepare(self, request: Request) -> bool:
        """Hold the run of the request at its start, built anew unless it is just there; True if it is a new one."""
        held = self._request
        same = held is not None and (held.directory, held.config) == (request.directory, request.config)
        if self._run is not None and same and self._run.trainer.step == request.start:
            return False
        from soflow.config import parse
        from soflow.run import TrainingRun

        self._run = None  # frees its memory first
        config = parse(request.config)
        self._run = TrainingRun(
            config,
            self._source(config),
            Path(request.directory),
            self.device,
            self._evaluator(config) if self.rank == 0 else None,
            request.start,
            self.rank,
            self.world_size,
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

        key = config.dataset.model_dump_json() + config.evaluation.model_dump_json()
        if key not in self._evaluators:
            self._evaluators = {key: Evaluator(self._source(config), config, self.device, self.cache)}
        return self._evaluators[key]


def _failure(request: Request, error: Exception) -> Answer:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return Answer(request.start, failure=reason, details=traceback.format_exc())
