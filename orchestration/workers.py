"""Warm groups of Ray Train workers: started once, then given run after run.

Starting a TorchTrainer takes 15 to 30 seconds, most of it process starts and imports. Here one TorchTrainer's workers
stay in a loop and take requests from a mailbox; what they do with a request is the business of the object that serves
it (`training_worker.TrainingWorker`, `cost_worker.CostWorker`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ray

from orchestration.config import ResourcesConfig

POLL_S = 10.0
"""How long a worker's or a group's question to the mailbox waits for an answer before it is asked again."""
JOIN_S = 15.0
"""How long closing waits for the workers to leave by themselves."""
GROUP_RESTARTS = 20
"""Losses of a worker that a group survives."""


class Server(Protocol):
    """What a worker does with requests."""

    def serve(self, request: Any) -> Any: ...

    def failure(self, request: Any, error: Exception) -> Any:
        """The answer to a request whose serving raised `error`."""
        ...


class WorkerGroupError(RuntimeError):
    """The group of workers is gone and cannot be restarted."""


@ray.remote(num_cpus=0)
class Mailbox:
    """Between one group's owner, who posts requests, and its workers, who all take each request in turn."""

    def __init__(self):
        self._number, self._request, self._answer, self._closed = 0, None, None, False
        self._changed = asyncio.Condition()

    async def post(self, request: Any) -> int:
        async with self._changed:
            self._number, self._request, self._answer = self._number + 1, request, None
            self._changed.notify_all()
            return self._number

    async def take(self, after: int) -> tuple[int, Any] | None:
        """The first unanswered request newer than number `after`, None if there was none for a while."""

        def ready() -> bool:
            return self._closed or (self._number > after and self._answer is None)

        if not await self._wait(ready):
            return None
        return (-1, None) if self._closed else (self._number, self._request)

    async def answer(self, number: int, answer: Any) -> None:
        """The first answer counts: one worker's failure is not replaced by another's success."""
        async with self._changed:
            if number == self._number and self._answer is None:
                self._answer = answer
                self._changed.notify_all()

    async def read(self, number: int) -> Any:
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
        folder: absolute path of the sweep or run, seen by all nodes.
        name: of the group, unique in `folder`.
        make_server: called in each worker with its device, rank and the number of workers.
        share: of the workers' CPUs and GPUs that the group reserves, below 1 where groups take turns.
    """

    def __init__(
        self,
        resources: ResourcesConfig,
        folder: Path,
        name: str,
        make_server: Callable[[Any, int, int], Server],
        share: float = 1.0,
    ):
        self._mailbox = Mailbox.remote()
        self._error: BaseException | None = None
        trainer = _trainer(resources, folder, name, self._mailbox, make_server, share)
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name=name, daemon=True)
        self._thread.start()

    def ask(self, request: Any) -> Any:
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


def _trainer(resources: ResourcesConfig, folder: Path, name: str, mailbox, make_server, share: float):
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = resources.gpus_per_worker > 0
    per_worker = {"CPU": resources.cpus_per_worker} | ({"GPU": resources.gpus_per_worker} if use_gpu else {})
    per_worker = {name: share * amount for name, amount in per_worker.items()}
    return TorchTrainer(
        serve,
        train_loop_config={
            "mailbox": mailbox,
            "threads": resources.cpus_per_worker,
            "make_server": make_server,
        },
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers, use_gpu=use_gpu, resources_per_worker=per_worker
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu and per_worker["GPU"] >= 1 else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder / "workers"),
            failure_config=FailureConfig(max_failures=GROUP_RESTARTS),
        ),
    )


def serve(loop_config: dict[str, Any]) -> None:
    """The worker's loop: take a request, serve it, answer; until the mailbox closes."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    torch.set_num_threads(loop_config["threads"])
    mailbox, context = loop_config["mailbox"], get_context()
    rank = context.get_world_rank()
    server = loop_config["make_server"](get_device(), rank, context.get_world_size())
    number = 0
    while number >= 0:
        message = ray.get(mailbox.take.remote(number))
        if message is None or message[0] < 0:
            number = number if message is None else -1
            continue
        number, request = message
        try:
            answer = server.serve(request)
        except Exception as error:
            # The other workers of this group may be waiting in a collective call: only a restart frees them.
            ray.get(mailbox.answer.remote(number, server.failure(request, error)))
            raise
        if rank == 0:
            ray.get(mailbox.answer.remote(number, answer))
