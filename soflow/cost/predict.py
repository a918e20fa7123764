"""Predict the cost of an optimizer step from a dry run on meta tensors, which have shapes but no content.

The dry run executes the trainer's real step, so any objective and network is supported. Memory counts all live tensors:
weights, their moving average, optimizer moments, gradients and activations. Temporary buffers inside kernels and
allocator overhead are not included. Fused attention in a Jacobian-vector product is predicted as the unfused kernel,
an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from soflow.config import RunConfig, override, parse, to_dict
from soflow.cost.accelerators import Accelerator
from soflow.cost.count import Operation, OperationCounter
from soflow.cost.synthetic import synthetic_source
from soflow.profiling.phases import recorded_by
from soflow.training.trainer import Trainer

META = torch.device("meta")
SLOWDOWN = 3.0
"""Time of the slowest eager step measured over its roofline estimate: 1.3 to 2.5 on CPUs (docs/cost.md), 1.4 to 2.8 on
an H100 (docs/gpu.md)."""
TOLERANCE = 0.01
"""Relative tolerance for two slopes of memory per sample to count as equal."""


@dataclass(frozen=True)
class Prediction:
    """Predicted cost of one optimizer step of one worker."""

    parameters: int
    operations: tuple[Operation, ...]
    persistent_bytes: int
    """Bytes of the tensors kept between steps."""
    peak_bytes: int
    """Peak bytes of live tensors."""

    @property
    def flops(self) -> int:
        """FLOPs of a step."""
        return sum(operation.flops for operation in self.operations)

    def arithmetic_s(self, accelerator: Accelerator) -> float:
        """Compute the seconds of the FLOPs at the accelerator's peak: a lower bound of the step time."""
        return sum(operation.flops / accelerator.flops_per_s[operation.precision] for operation in self.operations)

    def roofline_s(self, accelerator: Accelerator) -> float:
        """Compute the roofline estimate in seconds: every kernel at its compute or memory-bandwidth limit.

        This is a lower bound for a step without fused kernels; a compiled step moves fewer bytes.
        """
        return sum(
            max(
                operation.flops / accelerator.flops_per_s[operation.precision],
                operation.moved_bytes / accelerator.bytes_per_s,
            )
            for operation in self.operations
        )

    def range_s(self, accelerator: Accelerator) -> tuple[float, float]:
        """Compute the seconds to expect of an eager step: from the roofline estimate to SLOWDOWN times it."""
        least = self.roofline_s(accelerator)
        return least, SLOWDOWN * least


def predict(config: RunConfig, after: int = 1) -> Prediction:
    """Predict the cost of a step on one worker, without computation and almost without memory.

    With several workers, the cost per worker is that of its share of the batch, plus all-reduce buffers as large as the
    weights.

    Args:
        after: optimizer steps before it.
    """
    counter = OperationCounter()
    # Code that depends on pixel values cannot run on meta tensors; its cost is negligible compared to the network.
    without = {"dataset.loading_processes": 0, "dataset.augmentation": 0}
    two = {"training.total_steps": max(2, config.training.total_steps)}
    config = parse(override(to_dict(config), without | two))
    trainer = Trainer(config, synthetic_source(config.dataset), META)
    trainer.take_step()  # creates the optimizer's moments
    trainer.optimizer.zero_grad()
    counter.track(*trainer.persistent_tensors())
    persistent_bytes, trainer.step = counter.live_bytes, after
    with recorded_by(counter), counter:
        trainer.take_step()
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    return Prediction(parameters, tuple(counter.operations), persistent_bytes, counter.peak_bytes)


@dataclass(frozen=True)
class MemoryByBatch:
    """Linear model of a step's peak memory for large batches, where activations dominate the optimizer's buffers."""

    bytes_fixed: float
    bytes_per_sample: float

    def largest_batch(self, memory_bytes: float) -> int:
        """Compute the largest number of samples per worker and step that fits into memory; 0 if none fits."""
        return max(0, int((memory_bytes - self.bytes_fixed) // self.bytes_per_sample))


def memory_by_batch(config: RunConfig) -> MemoryByBatch:
    """Fit the linear model: double the batch, starting at the configured one, until the slope no longer changes."""
    batch, per_sample = config.training.batch_size, 0.0
    before = _peak_bytes(config, batch)
    while True:
        now = _peak_bytes(config, 2 * batch)
        previous, per_sample = per_sample, (now - before) / batch
        if per_sample > 0 and abs(per_sample - previous) <= TOLERANCE * per_sample:
            return MemoryByBatch(before - batch * per_sample, per_sample)
        before, batch = now, 2 * batch


def _peak_bytes(config: RunConfig, batch: int) -> int:
    return predict(parse(override(to_dict(config), {"training.batch_size": batch}))).peak_bytes
