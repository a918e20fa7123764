"""The worker's side of a cost study: trains one configuration in a separate process and measures it on request."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from soflow.training.trainer import Trainer

WARMUP_STEPS = 3


@dataclass(frozen=True)
class Prepare:
    """Build the trainer of a configuration, warm it up, count the operations of a step and measure its peak memory."""

    config: dict[str, Any]
    attention: str
    """"fused" where the objective allows it, or always "math"."""
    memory_bytes: float
    """Memory for which the largest batch is predicted."""


@dataclass(frozen=True)
class Time:
    """Time at least two steps, for at least `seconds`, of the last prepared trainer."""

    seconds: float


class CostWorker:
    """Server that answers `Prepare` with the costs of one step, and `Time` with milliseconds by step and phase."""

    def __init__(self, device: torch.device, rank: int, world_size: int):
        self.device = device
        self._trainer: Trainer | None = None
        self._attention = "fused"

    def close(self) -> None:
        """Do nothing: there is nothing to finish."""

    def serve(self, request: Prepare | Time) -> Any:
        with self._kernels():
            if isinstance(request, Time):
                from soflow.cost.measure import time_steps

                if self._trainer is None:
                    raise RuntimeError("the worker was lost and replaced after its step was prepared")
                return time_steps(self._trainer, 2, request.seconds)
            self._attention = request.attention
        with self._kernels():
            return self._prepare(request)

    def _prepare(self, request: Prepare) -> dict[str, Any]:
        from soflow.config import parse
        from soflow.cost.measure import count_step, peak_bytes, time_steps
        from soflow.cost.predict import memory_by_batch
        from soflow.cost.synthetic import synthetic_source
        from soflow.profiling.memory import PeakResidentMemory, bytes_of
        from soflow.training.compilation import CompileClock
        from soflow.training.trainer import Trainer

        self._trainer = None  # frees its memory first
        config = parse(request.config)
        clock = CompileClock(config.training.compile is True)  # a cost study sets it to true or false
        self._trainer = trainer = Trainer(config, synthetic_source(config.dataset), self.device)
        time_steps(trainer, WARMUP_STEPS)
        peak = max(peak_bytes(trainer) for _ in range(2))  # the first call may miss memory that it frees itself
        process = PeakResidentMemory()
        process.reset()
        time_steps(trainer, 1)
        # Operations of a compiled network are fused and cannot be counted.
        arithmetic = None if trainer.compiled else count_step(trainer)
        return {
            "compile_s": clock.seconds,
            "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
            "flops": arithmetic and arithmetic.flops,
            "saved_bytes": arithmetic and arithmetic.saved_bytes,
            "held_bytes": bytes_of(trainer.persistent_tensors()),
            "peak_bytes": peak,
            "process_peak_mib": process.mib(),
            "largest_batch": memory_by_batch(config).largest_batch(request.memory_bytes),
        }

    def failure(self, request: Prepare | Time, error: Exception) -> str:
        """Return the reason of a failure in one line."""
        return f"{type(error).__name__}: {error}".splitlines()[0]

    def _kernels(self):
        if self._attention != "math":
            return nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        return sdpa_kernel(SDPBackend.MATH)
