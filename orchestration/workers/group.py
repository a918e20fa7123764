"""Warm groups of Ray Train workers, started once and reused for many runs.

Starting a TorchTrainer takes 15 to 30 seconds, mostly for process starts and imports. Here the workers of one
TorchTrainer loop over requests from a mailbox. A server object in each worker executes them
(`workers.training.TrainingWorker`, `cost_study.worker.CostWorker`).
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
from orchestration.workers.start_limit import StartLimit, start_limit_s

JOIN_S = 15.0
"""Time limit for the workers to exit by themselves when the group closes."""


class Server(Protocol):
    """Executor of requests in a worker."""

    def serve(self, request: Any) -> Any:
        """Execute a request and return its answer."""
        ...

    def failure(self, request: Any, error: Exception) -> Any:
        """Return the answer to a request whose execution raised `error`."""
        ...

    def close(self) -> None:
        """End: no other request follows."""
        ...


class RequestFailed(RuntimeError):
    """Loss of the workers, more often than allowed, during one request; the group can still serve the next request."""


class ServingFailed(RuntimeError):
    """Exit of a worker after a failure that other workers, which may wait for it in a collective, did not share."""


class WorkerGroup:
    """TorchTrainer whose workers serve requests until `close`. Usable in any process connected to Ray.

    Args:
        folder: absolute path of the sweep or run, visible to all nodes.
        name: name of the group, unique in `folder`.
        make_server: factory, called in each worker with its device, rank and the number of workers.
        share: fraction of the workers' CPUs and GPUs that the group reserves; below 1 if groups take turns.
        restarts: how many times the workers may be lost during one request.
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
        # On this node, so that the loss of any other node leaves the mailbox and its request intact.
        this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=this_node).remote(restarts)
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
        """Post a request and wait for its answer; if a worker is lost, the group restarts and repeats the request.

        Raises:
            RequestFailed: if the workers were lost more often than allowed during this request.
        """
        if not self._thread.is_alive():
            self._start()
        number = ray.get(self._mailbox.post.remote(request))
        while (outcome := ray.get(self._mailbox.read.remote(number))) is None:
            free_placement_groups()  # this group may wait for resources that a lost group still reserves
            # Ray Train's controller replaces lost workers. If it was lost too, the thread has ended, and only this
            # process can restart the group.
            if not self._thread.is_alive():
                reason = _one_line(self._error) if self._error else "Ray Train ended"
                ray.get(self._mailbox.ended.remote([f"the group: {reason}"]))
                self._start()
        if outcome.losses:
            raise RequestFailed(f"the workers were lost {len(outcome.losses)} times: {outcome.losses[-1]}")
        return outcome.answer

    def close(self) -> None:
        """Stop the workers and free their resources."""
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(self._mailbox.close.remote())
        self._thread.join(JOIN_S)
        ray.kill(self._mailbox)

    def _fit(self, trainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # reported by `ask`
            self._error = error


def _trainer(resources: ResourcesConfig, folder: Path, *, name: str, mailbox, make_server, share: float):
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    per_worker = {kind: share * amount for kind, amount in resources.per_worker().items()}
    if "memory" in per_worker:  # bytes
        per_worker["memory"] = int(per_worker["memory"])
    use_gpu = "GPU" in per_worker
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
            callbacks=[LossReport(mailbox), StartLimit(start_limit_s())],
            # Unlimited here: the mailbox counts losses per request, Ray Train only per group.
            failure_config=FailureConfig(max_failures=-1),
        ),
    )


def serve(loop_config: dict[str, Any]) -> None:
    """Run the loop of a worker: take a request, serve it, post the answer; until the mailbox closes."""
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
            # A failure that all workers share leaves the group intact. Otherwise the others may be blocked in a
            # collective operation, and only a restart of the group releases them.
            reason = _one_line(error)
            shared = mailbox.fail.remote(generation, number, rank, reason, server.failure(request, error))
            if not ray.get(shared):
                raise ServingFailed(reason) from error
            continue
        if rank == 0:
            ray.get(mailbox.answer.remote(generation, number, answer))
    server.close()


class LossReport(UserCallback):
    """Callback in Ray Train's controller that reports the cause of a group's end to the mailbox."""

    def __init__(self, mailbox):
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if any(_is_preempted(error) for error in worker_exceptions.values()):
            return  # announced by the cluster: no loss, and others may have failed with it
        losses = [
            f"worker {rank}: {_one_line(getattr(error, 'health_check_failure', error))}"
            for rank, error in sorted(worker_exceptions.items())
            if not isinstance(error, ServingFailed)
        ]
        with contextlib.suppress(ray.exceptions.RayActorError):  # without a mailbox, nobody waits for an answer
            ray.get(self._mailbox.ended.remote(losses))


def _is_preempted(error: Exception) -> bool:
    """Check whether a worker was lost because the cluster took its node."""
    cause = getattr(error, "health_check_failure", error)
    return isinstance(cause, ray.exceptions.RayActorError) and cause.preempted


def _one_line(error: BaseException | None) -> str:
    """Format an error in one line; of Ray's long text about a lost process, keep the cause."""
    text = str(error)
    if "low on memory" in text:  # Ray's memory monitor
        return f"killed because {OUT_OF_MEMORY}"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process or node was lost"
    return f"{type(error).__name__}: {text}".splitlines()[0]
