"""What a step would cost, from a dry run on meta tensors, which have shapes and no content.

The trainer's own step runs as it would, so that a changed objective or network is predicted as it is. Memory is that of
all tensors that are alive at once: weights, their average, the optimiser's moments, gradients and activations. What
kernels allocate inside themselves is not seen, nor what an allocator wastes. bf16 is predicted as fp32, an upper bound
on its memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from soflow.config import RunConfig, override, parse, to_dict
from soflow.cost.accelerators import Accelerator
from soflow.cost.count import OperationCounter
from soflow.cost.synthetic import synthetic_source
from soflow.profiling.phases import recorded_by
from soflow.training.trainer import Trainer

META = torch.device("meta")
EVEN = 0.01
"""By which part two increases of memory per sample may differ and count as even."""


@dataclass(frozen=True)
class Prediction:
    """One optimiser step of one worker."""

    parameters: int
    operations: tuple[tuple[str, int, int], ...]
    """Of every kernel its phase (soflow.profiling.phases), floating-point operations and bytes read and written."""
    held_bytes: int
    """Kept between steps."""
    peak_bytes: int
    """The most that is alive at once."""

    @property
    def flops(self) -> int:
        """Floating-point operations of a step."""
        return sum(flops for _, flops, _ in self.operations)

    def arithmetic_s(self, accelerator: Accelerator, precision: str) -> float:
        """Seconds that the products alone take at the accelerator's peak: no step is faster."""
        return self.flops / accelerator.flops_per_s[precision]

    def roofline_s(self, accelerator: Accelerator, precision: str) -> float:
        """Seconds with every kernel at the peak of its arithmetic or of memory, whichever binds it.

        A floor for a step whose kernels are not fused; a compiled one moves fewer bytes.
        """
        peak, bandwidth = accelerator.flops_per_s[precision], accelerator.bytes_per_s
        return sum(max(flops / peak, moved / bandwidth) for _, flops, moved in self.operations)


def predict(config: RunConfig) -> Prediction:
    """The cost of a step of a run on one worker; nothing is computed and next to nothing allocated.

    A run on several workers costs each what one with their share of the batch costs, and buffers for the exchange of
    gradients besides, as large as the weights.
    """
    counter = OperationCounter()
    # What depends on pixels cannot be dry-run, and costs next to nothing beside the network.
    config = parse(override(to_dict(config), {"dataset.loading_processes": 0, "dataset.augmentation": 0}))
    trainer = Trainer(config, synthetic_source(config.dataset), META)
    trainer.take_step()  # the optimiser makes its moments
    trainer.optimizer.zero_grad()
    counter.track(*trainer.held_tensors())
    held = counter.live_bytes
    with recorded_by(counter), counter:
        trainer.take_step()
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    return Prediction(parameters, tuple(counter.operations), held, counter.peak_bytes)


@dataclass(frozen=True)
class MemoryByBatch:
    """Peak memory of a step where it grows evenly with the batch: beyond what the optimiser needs in any case."""

    bytes_fixed: float
    bytes_per_sample: float

    def largest_batch(self, memory_bytes: float) -> int:
        """Samples per worker and step that fit into memory, 0 if none does."""
        return max(0, int((memory_bytes - self.bytes_fixed) // self.bytes_per_sample))


def memory_by_batch(config: RunConfig) -> MemoryByBatch:
    """From steps of the configured batch, twice as many samples and so on, until doubling again tells nothing new."""
    batch, per_sample = config.training.batch_size, 0.0
    before = _peak_bytes(config, batch)
    while True:
        now = _peak_bytes(config, 2 * batch)
        known, per_sample = per_sample, (now - before) / batch
        if per_sample > 0 and abs(per_sample - known) <= EVEN * per_sample:
            return MemoryByBatch(before - batch * per_sample, per_sample)
        before, batch = now, 2 * batch


def _peak_bytes(config: RunConfig, batch: int) -> int:
    return predict(parse(override(to_dict(config), {"training.batch_size": batch}))).peak_bytes
