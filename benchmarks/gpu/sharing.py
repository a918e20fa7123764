"""Do two processes train on one GPU, and on two? Slots with fractions of a GPU, and data-parallel workers."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from benchmarks.gpu.agreement import disturb, relative
from benchmarks.gpu.processes import TIMEOUT, in_processes, meet
from benchmarks.gpu.results import Figure
from benchmarks.gpu.training import config_of, deterministic, differing
from soflow.cost.synthetic import synthetic_source
from soflow.randomness import generator
from soflow.training.trainer import Trainer

SHARED_REASON = "two processes on one GPU compute what one alone does, with torch's deterministic algorithms"
WORKERS_REASON = (
    "two workers take the steps of one, in float64: roundings of 1e-16, which the optimizer may divide by its ε of 1e-8"
)
SLOT_STEPS = 200
WORKER_STEPS = 3
SECONDS = 120
"""Time limit of the processes of one check."""


@dataclass(frozen=True)
class Trained:
    """Result of a training in another process."""

    state: dict[str, Any]
    """Training state on the CPU."""
    images_per_s: float


def shared_gpu(device: torch.device, steps: int = SLOT_STEPS) -> list[Figure]:
    """Train in two processes on one GPU at the same time, and in one alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (alone,) = in_processes(train_in_slot, [(str(device), steps, folder / "alone", 0, 1)], SECONDS)
        slots = [(str(device), steps, folder / "slots", slot, 2) for slot in range(2)]
        together = in_processes(train_in_slot, slots, SECONDS)
    differences = sum(differing(alone.state, trained.state) for trained in together)
    ratio = sum(trained.images_per_s for trained in together) / alone.images_per_s
    return [Figure("values that differ", differences, 0), Figure("images/s of two slots over one process", ratio)]


def train_in_slot(device: str, steps: int, rendezvous: Path, slot: int, slots: int) -> Trained:
    """Train once all slots are ready."""
    config = config_of(training={"total_steps": steps, "batch_size": 128})
    with deterministic():
        trainer = Trainer(config, synthetic_source(config.dataset), torch.device(device))
        meet(rendezvous, slot, slots)
        began = time.perf_counter()
        trainer.advance(steps)  # it ends with a synchronization
        seconds = time.perf_counter() - began
    return Trained(on_cpu(trainer.state_dict()), steps * config.training.batch_size / seconds)


def on_cpu(value: Any) -> Any:
    """Copy the tensors of nested dictionaries and lists to the CPU, as a device's cannot leave a process that ends."""
    if isinstance(value, dict):
        return {key: on_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [on_cpu(inner) for inner in value]
    return value.cpu() if isinstance(value, Tensor) else value


def two_workers(devices: tuple[torch.device, torch.device]) -> list[Figure]:
    """Compare the weights of two data-parallel workers, each on its device, with those of one worker."""
    backend = "nccl" if devices[0].type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workers = [(backend, str(device), folder / "two", rank, 2) for rank, device in enumerate(devices)]
        several = in_processes(weights_of_worker, workers, SECONDS)
        (single,) = in_processes(weights_of_worker, [(backend, str(devices[0]), folder / "one", 0, 1)], SECONDS)
    return [
        Figure("values in which the two workers differ", int((several[0] != several[1]).sum()), 0),
        Figure("relative difference from one worker", relative(several[0], single), 1e-8),
    ]


def weights_of_worker(backend: str, device: str, rendezvous: Path, rank: int, world_size: int) -> Tensor:
    """Train a few steps as one of `world_size` workers; return the weights on the CPU."""
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    torch.set_default_dtype(torch.float64)
    method = f"file://{rendezvous}"
    distributed.init_process_group(backend, init_method=method, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        config = config_of(training={"total_steps": WORKER_STEPS, "batch_size": 10})  # 5 samples each
        trainer = Trainer(config, synthetic_source(config.dataset), place, rank, world_size)
        disturb(trainer.network, generator("cpu", 0, "weights"))
        trainer.advance(WORKER_STEPS)
        return torch.cat([weights.detach().flatten().cpu() for weights in trainer.network.parameters()])
    finally:
        distributed.destroy_process_group()
