"""Warm groups of Ray Train workers: started once, then given run after run.

Starting a TorchTrainer takes 15 to 30 seconds, most of it process starts and imports. Here one TorchTrainer's workers
stay in a loop and take requests from a mailbox; what they do with a request is the business of the object that serves
it (`training_worker.TrainingWorker`, `cost_worker.CostWorker`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestration.config import ResourcesConfig
from orchestration.workers.mailbox import OUT_OF_MEMORY, RESTARTS, Mailbox
from orchestration.workers.placement import free_placement_groups

JOIN_S = 15.0
"""How long closing waits for the workers to leave by themselves."""


class Server(Protocol):
    """What a worker does with requests."""

    def serve(self, request: Any) -> Any: ...

    def failure(self, request: Any, error: Exception) -> Any:
        """The answer to a request whose serving raised `error`."""
        ...


class RequestFailed(RuntimeError):
    """The workers were lost on this request time and again; the group serves the next one."""


class ServingFailed(RuntimeError):
    """A worker leaves its group, since others may be waiting for what it could not do."""


class WorkerGroup:
    """A TorchTrainer whose workers serve requests until `close`. Used in any process connected to Ray.

    Args:
        folder: absolute path of the sweep or run, seen by all nodes.
        name: of the group, unique in `folder`.
        make_server: called in each worker with its device, rank and the number of workers.
        share: of the workers' CPUs and GPUs that the group reserves, below 1 where groups take turns.
        restarts: how many times the workers may be lost on one request.
    """

    def __init__(
        self,
        resources: ResourcesConfig,
        folder: Path,
        name: str,
        make_server: Callable[[Any, int, int], Server],
        share: float = 1.0,
        restarts: int = RESTARTS,
    ):
        # Lost with its owner's node, and with no other.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote(restarts)
        self._make_trainer = partial(
            _trainer, resources, folder, mailbox=self._mailbox, make_server=make_server, share=share
        )
        self._name, self._starts = name, 0
        self._start()

    def _start(self) -> None:
        free_placement_groups()
        self._starts += 1
        name = f"{self._name}-{self._starts}"
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, args=(self._make_trainer(name=name),), name=name, daemon=True)
        self._thread.start()

    def ask(self, request: Any) -> Any:
        """Post a request and wait for its answer; a worker lost meanwhile is replaced and starts the request anew.

        Raises:
            RequestFailed: if the workers were lost on this request time and again.
        """
        if not self._thread.is_alive():
            self._start()
        number = ray.get(self._mailbox.post.remote(request))
        while (outcome := ray.get(self._mailbox.read.remote(number))) is None:
            free_placement_groups()  # what a lost group held may be what this one waits for
            if not self._thread.is_alive():  # whoever replaces lost workers was lost as well
                ray.get(self._mailbox.ended.remote([f"the group: {_one_line(self._error)}"]))
                self._start()
        if outcome.losses:
            raise RequestFailed(f"the workers were lost {len(outcome.losses)} times: {outcome.losses[-1]}")
        return outcome.answer

    def close(self) -> None:
        """Let the workers leave, and free their resources."""
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(self._mailbox.close.remote())
        self._thread.join(JOIN_S)
        ray.kill(self._mailbox)

    def _fit(self, trainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # whatever ended the group is told to whoever asks it
            self._error = error


def _trainer(resources: ResourcesConfig, folder: Path, *, name: str, mailbox, make_server, share: float):
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
            callbacks=[LossReport(mailbox)],
            # The mailbox counts, for each request anew.
            failure_config=FailureConfig(max_failures=-1),
        ),
    )


def serve(loop_config: dict[str, Any]) -> None:
    """The worker's loop: take a request, serve it, answer; until the mailbox closes."""
    import torch
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    torch.set_num_threads(loop_config["threads"])
    mailbox, context = loop_config["mailbox"], get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    generation = broadcast_from_rank_zero(ray.get(mailbox.begin.remote(workers)) if rank == 0 else None)
    server = loop_config["make_server"](get_device(), rank, workers)
    number = 0
    while number >= 0:
        message = ray.get(mailbox.take.remote(generation, number))
        if message is None or message[0] < 0:
            number = number if message is None else -1
            continue
        number, request = message
        try:
            answer = server.serve(request)
        except Exception as error:
            said = _one_line(error)
            failed = mailbox.fail.remote(generation, number, rank, said, server.failure(request, error))
            if not ray.get(failed):
                raise ServingFailed(said) from error
            continue
        if rank == 0:
            ray.get(mailbox.answer.remote(generation, number, answer))


class LossReport(UserCallback):
    """Tells the mailbox, from the process that watches the workers, why a group ended."""

    def __init__(self, mailbox):
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        losses = [
            f"worker {rank}: {_one_line(getattr(error, 'health_check_failure', error))}"
            for rank, error in sorted(worker_exceptions.items())
            if not isinstance(error, ServingFailed)
        ]
        with contextlib.suppress(ray.exceptions.RayActorError):  # then there is no owner either
            ray.get(self._mailbox.ended.remote(losses))


def _one_line(error: BaseException) -> str:
    """An error in one line; Ray's many lines about a lost process are reduced to their cause."""
    text = str(error)
    if "low on memory" in text:  # Ray's memory monitor
        return f"killed since {OUT_OF_MEMORY}"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process or node was lost"
    return f"{type(error).__name__}: {text}".splitlines()[0]
