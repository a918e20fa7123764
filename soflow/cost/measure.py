"""A trainer's own optimiser steps, measured: time by phase, peak memory, arithmetic, activations kept for backward."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from soflow.cost.count import OperationCounter
from soflow.profiling.memory import AllocationPeak, bytes_of
from soflow.profiling.phases import recorded_by
from soflow.training.trainer import Trainer


@dataclass(frozen=True)
class Arithmetic:
    """What one step computes and keeps."""

    flops: dict[str, int]
    """Floating-point operations by phase."""
    saved_bytes: int
    """Bytes of activations kept for the backward pass, weights not included."""


def count_step(trainer: Trainer) -> Arithmetic:
    """Count one more step of the trainer (which takes it)."""
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
    """Peak bytes of all tensors over one more step: weights, average, optimiser state and what the step adds."""
    trainer.optimizer.zero_grad()
    held = bytes_of(trainer.held_tensors())
    with AllocationPeak(trainer.device) as allocations:
        trainer.take_step()
    trainer.optimizer.zero_grad()
    return held + allocations.peak_bytes


class PhaseClock:
    """Record the milliseconds spent in each phase (soflow.profiling.phases) without waiting for the device."""

    def __init__(self, device: torch.device):
        self.device = device
        self._steps: list[list[tuple[str, object, object]]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside is one step; its phases are kept apart from those of other steps."""
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
        """For each step the time of every phase, and under "step" of the whole."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found = []
        for marks in self._steps:
            spent: dict[str, float] = defaultdict(float)
            for name, begin, end in marks:
                spent[name] += begin.elapsed_time(end) if self.device.type == "cuda" else (end - begin) * 1e3
            found.append(dict(spent))
        return found

    def _now(self):
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        return time.perf_counter()


def time_steps(trainer: Trainer, steps: int, seconds: float = 0.0) -> list[dict[str, float]]:
    """Time each of `steps` more steps, and of what fits into `seconds`: ms of the whole ("step") and of every phase."""
    clock = PhaseClock(trainer.device)
    began = time.perf_counter()
    with recorded_by(clock):
        while steps > 0 or time.perf_counter() - began < seconds:
            with clock.step():
                trainer.take_step()
            steps -= 1
            if seconds and trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)  # seconds are spent on the device, not on issuing steps
    return clock.milliseconds()
