"""Measure a trainer's optimizer steps: time by phase, peak memory, FLOPs, activations saved for backward."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soflow.cost.count import OperationCounter
from soflow.profiling.memory import AllocationPeak, bytes_of
from soflow.profiling.phases import recorded_by
from soflow.training.trainer import Trainer


@dataclass(frozen=True)
class Arithmetic:
    """FLOPs and saved activations of one step."""

    flops: dict[str, int]
    """FLOPs by phase."""
    saved_bytes: int
    """Bytes of activations saved for the backward pass, without weights."""


def count_step(trainer: Trainer) -> Arithmetic:
    """Take one step of the trainer and count its FLOPs and saved activations."""
    weights = {parameter.untyped_storage()._cdata for parameter in trainer.network.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    counter = OperationCounter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), recorded_by(counter), counter:
        trainer.take_step()
    activations = [tensor for key, tensor in saved.items() if key not in weights]
    return Arithmetic(counter.flops, bytes_of(activations))


def peak_bytes(trainer: Trainer) -> int:
    """Take one step and measure the peak bytes of all tensors: weights, average, optimizer state, activations."""
    trainer.optimizer.zero_grad()
    persistent_bytes = bytes_of(trainer.persistent_tensors())
    with AllocationPeak(trainer.device) as allocations:
        trainer.take_step()
    trainer.optimizer.zero_grad()
    return persistent_bytes + allocations.peak_bytes


class PhaseClock:
    """Recorder of the milliseconds in each phase (soflow.profiling.phases), without device synchronization."""

    def __init__(self, device: torch.device):
        self.device = device
        self._steps: list[list[tuple[str, Any, Any]]] = []  # begin and end as CUDA events or seconds

    @contextmanager
    def step(self) -> Iterator[None]:
        """Record the block as one step."""
        self._steps.append([])
        with self.phase("step"):
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = self._now()
        try:
            yield
        finally:
            self._steps[-1].append((name, begin, self._now()))

    def milliseconds(self) -> list[dict[str, float]]:
        """Return for each step the milliseconds by phase, with the total as "step"."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        steps = []
        for marks in self._steps:
            spent: dict[str, float] = defaultdict(float)
            for name, begin, end in marks:
                spent[name] += begin.elapsed_time(end) if self.device.type == "cuda" else (end - begin) * 1e3
            steps.append(dict(spent))
        return steps

    def _now(self):
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        return time.perf_counter()


def time_steps(trainer: Trainer, steps: int, seconds: float = 0.0) -> list[dict[str, float]]:
    """Take at least `steps` steps, for at least `seconds`; return for each the ms by phase and in total ("step")."""
    clock = PhaseClock(trainer.device)
    began = time.perf_counter()
    with recorded_by(clock):
        while steps > 0 or time.perf_counter() - began < seconds:
            with clock.step():
                trainer.take_step()
            steps -= 1
            if seconds and trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)  # measure device time, not the launch of kernels
    return clock.milliseconds()
