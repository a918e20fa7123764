"""Training loop: data order, optimizer steps, moving average, measurements, and the state required to resume."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from soflow import codecs
from soflow.conditioning import join
from soflow.config import RunConfig
from soflow.data.augmentation import EDM, NUM_PARAMETERS, UPRIGHT, augment
from soflow.data.base import DataSource
from soflow.data.loading import BatchOrder, batches
from soflow.objectives.base import Draws, Objective, normal
from soflow.profiling.clock import StepClock
from soflow.profiling.memory import AllocationPeak, PeakResidentMemory, bytes_of
from soflow.profiling.phases import phase
from soflow.randomness import generator
from soflow.training.build import build_network, build_objective, build_optimizer
from soflow.training.compilation import (
    CompileClock,
    check_derivative,
    check_flash_attention,
    compiled,
    disturbed,
)
from soflow.training.curve import TermTotals
from soflow.training.ema import MovingAverage
from soflow.training.out_of_memory import StepOutOfMemory, is_out_of_memory
from soflow.training.teacher import attach_teacher

NEVER = torch.iinfo(torch.int64).max


class NonFiniteLoss(RuntimeError):
    """Diverged training: the loss became infinite or NaN."""


class LossModule(nn.Module):
    """Module that computes the complete loss in its forward, so that DistributedDataParallel sees all network calls."""

    def __init__(self, network: nn.Module, objective: Objective):
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, data: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted sum of the per-sample losses, and the objective's per-sample terms."""
        with self.objective.same_dropout(draws):
            losses = self.objective.losses(self.network, data, labels, draws)
        return (draws.weight * losses.loss).sum(), losses.terms


class Trainer:
    """Training state and loop on one of `world_size` data-parallel workers, which all have the same weights.

    Args:
        micro_batches: number of micro-batches per step and worker, for gradient accumulation. More of them need less
            memory; up to rounding and dropout masks the step is the same.

    Attributes:
        step: number of optimizer steps done.
        curve: points of the last `advance` at every log_every-th step: names to values, means since the point before.
        network, ema: trained weights and their moving average (ema.module, in the configured dtype).
        train_s: seconds spent in optimizer steps since the start of the run, including before resuming; without
            compilation.
    """

    def __init__(
        self,
        config: RunConfig,
        source: DataSource,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ):
        self.config, self.source, self.device = config, source, device
        self.rank, self.world_size, self.micro_batches = rank, world_size, micro_batches
        check_flash_attention(config, device)
        with device if device.type == "meta" else nullcontext():  # skips the initialization of meta weights
            self.network = build_network(config, source.num_classes).to(device)
        self.objective = build_objective(config, source.num_classes)
        attach_teacher(self.objective, config, device)
        self.codec = codecs.build(config.dataset, device)
        self.ema = MovingAverage(self.network, config.training)
        self.optimizer = build_optimizer(config, self.network)
        module = LossModule(compiled(self.network, config, device), self.objective)
        self.module = DistributedDataParallel(module) if world_size > 1 else module
        self.order = BatchOrder(len(source), config.training.batch_size, config.seed)
        self.step, self.train_s = 0, 0.0
        self.curve: list[tuple[int, dict[str, float]]] = []
        self._compile_clock = CompileClock(self.compiled)
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self._clock, self._process = StepClock(device), PeakResidentMemory()
        if device.type != "meta" and self.approximates_derivative:
            with disturbed(self.network):
                check_derivative(self.derivative_error(), config)

    def advance(self, steps: int) -> dict[str, float]:
        """Take optimizer steps and return metrics over them, equal on all workers except for times.

        Losses are means over samples. "gradient/norm" is the median over steps of the norm of the full gradient,
        "gradient/spike" the maximum divided by the median.

        Raises:
            NonFiniteLoss: if a loss was infinite or NaN; the message names the first such step.
            StepOutOfMemory: if a step did not fit into memory; the trainer is unusable afterwards.
        """
        with self._memory_named():
            return self._advance(steps)

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise StepOutOfMemory(
                f"training.batch_size = {self.config.training.batch_size}: a step does not fit into memory with "
                f"{self.micro_batch} samples at a time on each of {self.world_size} workers "
                f"({' '.join(str(error).split())[:200]})"
            ) from None

    @property
    def micro_batch(self) -> int:
        """Largest number of samples per network call on this worker."""
        return -(-self.config.training.batch_size // (self.world_size * self.micro_batches))

    def _advance(self, steps: int) -> dict[str, float]:
        self.network.train()
        self._process.reset()
        totals, gradients = TermTotals(), list[Tensor]()
        first_bad = torch.full((), NEVER, device=self.device)
        begin, compile_s = time.perf_counter(), self._compile_clock.seconds
        memory, persistent_bytes = AllocationPeak(self.device), 0
        for step in range(steps):
            self._clock.start_step()
            measured = step == steps - 1  # the last step only: recording allocations is slow on the CPU
            if measured:
                self.optimizer.zero_grad()
                persistent_bytes = bytes_of(self.persistent_tensors())
            with memory if measured else nullcontext():
                loss, terms = self.take_step()
            gradients.append(get_total_norm([w.grad for w in self.network.parameters() if w.grad is not None]))
            # No host synchronization in the loop: sums and the first bad step (counted from 1) stay on the device.
            first_bad = torch.where(loss.isfinite(), first_bad, first_bad.clamp(max=self.step))
            totals.add(terms)
            if self.step % self.config.training.log_every == 0:
                totals.mark(self.step)
        self._clock.stop()
        self.train_s += time.perf_counter() - begin - (self._compile_clock.seconds - compile_s)
        self._check_finite(first_bad)
        norms = torch.stack(gradients)
        self.curve = totals.curve(self._reduce, norms, self.step - steps)
        for step, values in self.curve:
            values["train/learning_rate"] = self._learning_rate(step - 1)
        return (
            totals.means(self._reduce)
            | {
                "gradient/norm": norms.median().item(),
                "gradient/spike": (norms.max() / norms.median()).item(),
                "time/step_ms": self._clock.median_ms(),
                "time/train_s": self.train_s,
                "throughput/images_per_s": self.config.training.batch_size * 1e3 / self._clock.median_ms(),
                "memory/peak_mib": (persistent_bytes + memory.peak_bytes) / 2**20,
                "memory/process_mib": self._process.mib(),
            }
            | self._compile_clock.metrics()
        )

    def take_step(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one optimizer step; return its loss and the objective's per-sample terms, on the device."""
        training = self.config.training
        with phase("batch"):
            data, labels = self._batch()
            shares = self._draws()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        self.optimizer.zero_grad()
        results = []
        for number, draws in enumerate(shares):
            rows = slice(number, None, self.micro_batches)
            with self._without_all_reduce() if draws is not shares[-1] else nullcontext():
                loss, terms = self.module(data[rows], labels[rows], draws)
                with phase("backward"), self.objective.forward.backward(self.device):
                    # DistributedDataParallel averages gradients over workers, but the sample weights already sum to 1
                    # over the global batch.
                    (loss * self.world_size).backward()
            results.append((loss.detach(), terms))
        with phase("optimizer"):
            self.optimizer.step()
        self.step += 1
        if self.step % training.ema_every == 0:
            with phase("ema"):
                self.ema.update_parameters(self.network)
        losses, terms = zip(*results, strict=True)
        return sum(losses), {name: torch.cat([values[name] for values in terms]) for name in terms[0]}

    def _without_all_reduce(self) -> AbstractContextManager:
        """Accumulate gradients on this worker inside the block, without averaging over workers."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else nullcontext()

    def _draws(self) -> list[Draws]:
        """Draw this worker's share of the current step's random numbers, one item per micro-batch."""
        config = self.config
        shape = (config.training.batch_size, *config.dataset.sample_shape)
        noise = normal(shape, generator(self.device, config.seed, "noise", self.step))
        random = generator("cpu", config.seed, "step", self.step)
        draws = self.objective.draw(noise, self.step / config.training.total_steps, random)
        draws = replace(draws, dropout_seed=random.initial_seed())
        # Micro-batches are shares of world_size · micro_batches virtual workers.
        virtual = self.world_size * self.micro_batches
        return [draws.share(rank, virtual).to(self.device) for rank in range(self.rank, virtual, self.world_size)]

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Load this worker's share of the current step's samples, roughly in [−1, 1], and labels."""
        config, dataset = self.config, self.config.dataset
        if self._batches is None:
            steps = range(self.step, config.training.total_steps)
            place = (self.device, self.rank, self.world_size, dataset.loading_processes)
            self._batches = batches(self.source, self.order, steps, *place)
        stored, labels = next(self._batches)
        if not dataset.conditional:
            labels = torch.full_like(labels, self.source.num_classes)
        if dataset.latent:
            random = generator(self.device, config.seed, "encode", self.step)
            noise = normal((config.training.batch_size, *dataset.sample_shape), random)
            return self.codec.encode(stored, noise[self.rank :: self.world_size].to(self.device)), labels
        data = self.codec.encode(stored)
        if not dataset.augmentation:
            return data, labels
        random = generator(self.device, config.seed, "augmentation", self.step, self.rank)
        data, parameters = augment(
            data, dataset.augmentation, random, EDM if dataset.augmentations == "edm" else UPRIGHT
        )
        return data, join(labels, parameters)

    @property
    def compiled(self) -> bool:
        """True if the network is compiled, as configured unless no compiler works."""
        return hasattr(self._called_network, "_orig_mod")

    @property
    def approximates_derivative(self) -> bool:
        """True if the loss contains a derivative that is compiled or a finite difference."""
        return self.objective.approximates_derivative(self._called_network)

    @property
    def _called_network(self) -> nn.Module:
        """The network as the loss calls it: compiled, if it is."""
        module = self.module.module if isinstance(self.module, DistributedDataParallel) else self.module
        return module.network

    def derivative_error(self) -> float:
        """Measure the relative error of the derivative in the loss, which is compiled or a finite difference.

        Uses the first micro-batch of the current step, whose shapes are compiled already, with the data's first images.
        """
        draws = self._draws()[0]
        stored, classes = self.source.batch(np.arange(len(draws.t)) % len(self.source))
        labels = torch.from_numpy(classes).to(self.device)
        if not self.config.dataset.conditional:
            labels = torch.full_like(labels, self.source.num_classes)
        data = self.codec.encode(torch.from_numpy(stored).to(self.device))
        if self.config.dataset.augmentation:
            labels = join(labels, torch.zeros(len(labels), NUM_PARAMETERS, device=self.device))
        with self._memory_named():
            return self.objective.derivative_error(self._called_network, data, labels, draws)

    def persistent_tensors(self) -> list[Tensor]:
        """Return the tensors kept between steps: weights, their moving average and optimizer moments."""
        modules = (self.network, self.ema.module)
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [tensor for tensor in (*tensors, *moments) if isinstance(tensor, Tensor)]

    def averaged_network(self) -> nn.Module:
        """Return the network with averaged weights, for evaluation and sampling."""
        if self.config.training.ema_dtype == "float32":
            return self.ema.module.eval()
        return copy.deepcopy(self.ema.module).float().eval()

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of the step that follows `step` others."""
        optimizer = self.config.optimizer
        return optimizer.learning_rate * min(1.0, (step + 1) / (optimizer.warmup_steps + 1))

    def earliest(self, step: int) -> int:
        """Return the minimum of `step` over all workers."""
        return int(self._reduce(torch.tensor(step, device=self.device), "MIN"))

    def _check_finite(self, first_bad: Tensor) -> None:
        step = int(self._reduce(first_bad, "MIN"))
        if step < NEVER:
            raise NonFiniteLoss(
                f"the loss became infinite or NaN at step {step}; try a lower optimizer.learning_rate "
                f"(now {self.config.optimizer.learning_rate:g}) or a longer optimizer.warmup_steps"
            )

    def _reduce(self, value: Tensor, operation: str) -> Tensor:
        """All-reduce a tensor over the workers in place, with operation "SUM" or "MIN"."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value, getattr(torch.distributed.ReduceOp, operation))
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return the state for an exact resume; random numbers depend on seed and step only, so none are stored."""
        return {
            "step": self.step,
            "train_s": self.train_s,
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.step, self.train_s = state["step"], state["train_s"]
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        self.ema.n_averaged.fill_(self.step // self.config.training.ema_every)
        self._batches = None
        # The optimizer keeps references to the loaded tensors and updates them in place.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
