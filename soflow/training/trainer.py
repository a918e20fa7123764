"""The training loop: data order, optimiser steps, moving average, measurements, and the state that a resume needs."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from soflow import codecs
from soflow.conditioning import join
from soflow.config import RunConfig
from soflow.data.augmentation import EDM, UPRIGHT, augment
from soflow.data.base import DataSource
from soflow.data.loading import BatchOrder, batches
from soflow.objectives.base import Draws, Objective, normal
from soflow.profiling.clock import StepClock
from soflow.profiling.memory import AllocationPeak, PeakResidentMemory, bytes_of
from soflow.profiling.phases import phase
from soflow.randomness import generator
from soflow.training.build import build_network, build_objective, build_optimizer
from soflow.training.ema import moving_average
from soflow.training.out_of_memory import StepOutOfMemory, is_out_of_memory
from soflow.training.teacher import attach_teacher

NEVER = torch.iinfo(torch.int64).max


class NonFiniteLoss(RuntimeError):
    """Training diverged: the loss became infinite or NaN."""


class LossModule(nn.Module):
    """The whole loss inside one forward, so that DistributedDataParallel sees every use of the network."""

    def __init__(self, network: nn.Module, objective: Objective):
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, data: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples' weighted sum of losses and the objective's per-sample terms."""
        with self.objective.same_dropout(draws):
            losses = self.objective.losses(self.network, data, labels, draws)
        return (draws.weight * losses.loss).sum(), losses.terms


class Trainer:
    """One training run on one of `world_size` workers, which all hold the same weights.

    Args:
        micro_batches: in how many parts each step takes this worker's samples, one after another, adding up gradients.
            More of them need less memory; to rounding they make the same step, dropout's masks apart.

    Attributes:
        step: optimiser steps done.
        network, ema: the trained weights and their moving average (ema.module, in the configured dtype).
        train_s: seconds spent in optimiser steps since the run began, over all resumes.
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
        with device if device.type == "meta" else nullcontext():  # weights without content need not be made first
            self.network = build_network(config, source.num_classes).to(device)
        self.objective = build_objective(config, source.num_classes)
        attach_teacher(self.objective, config, device)
        self.codec = codecs.build(config.dataset, device)
        self.ema = moving_average(self.network, config.training)
        self.optimizer = build_optimizer(config, self.network)
        module = LossModule(torch.compile(self.network) if config.training.compile else self.network, self.objective)
        self.module = DistributedDataParallel(module) if world_size > 1 else module
        self.order = BatchOrder(len(source), config.training.batch_size, config.seed)
        self.step, self.train_s = 0, 0.0
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self._clock, self._process = StepClock(device), PeakResidentMemory()

    def advance(self, steps: int) -> dict[str, float]:
        """Take optimiser steps and return what was measured over them, the same on every worker but for clocks.

        Losses are means over samples. Of the whole gradient's norms "gradient/norm" is the median over the steps and
        "gradient/spike" the largest over the median.

        Raises:
            NonFiniteLoss: naming the first step whose loss was infinite or NaN.
            StepOutOfMemory: after which this trainer is of no use.
        """
        try:
            return self._advance(steps)
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
        """The most samples that this worker's network sees at a time."""
        return -(-self.config.training.batch_size // (self.world_size * self.micro_batches))

    def _advance(self, steps: int) -> dict[str, float]:
        self.network.train()
        self._process.reset()
        totals: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        first_bad = torch.full((), NEVER, device=self.device)
        begin = time.perf_counter()
        memory, held = AllocationPeak(self.device), 0
        for step in range(steps):
            self._clock.start_step()
            measured = step == steps - 1  # the last one only: recording allocations takes time on the CPU
            if measured:
                self.optimizer.zero_grad()
                held = bytes_of(self.held_tensors())
            with memory if measured else nullcontext():
                loss, terms = self.take_step()
            gradients.append(get_total_norm([w.grad for w in self.network.parameters() if w.grad is not None]))
            # No host synchronisation in the loop: sums and the first bad step (counted from 1) stay on the device.
            first_bad = torch.where(loss.isfinite(), first_bad, first_bad.clamp(max=self.step))
            for name, values in terms.items():
                pair = torch.stack([values.sum(), values.new_tensor(float(len(values)))])
                totals[name] = totals[name] + pair if name in totals else pair
        self._clock.stop()
        self.train_s += time.perf_counter() - begin
        self._check_finite(first_bad)
        norms = torch.stack(gradients)
        return self._means(totals) | {
            "gradient/norm": norms.median().item(),
            "gradient/spike": (norms.max() / norms.median()).item(),
            "time/step_ms": self._clock.median_ms(),
            "time/train_s": self.train_s,
            "throughput/images_per_s": self.config.training.batch_size * 1e3 / self._clock.median_ms(),
            "memory/peak_mib": (held + memory.peak_bytes) / 2**20,
            "memory/process_mib": self._process.mib(),
        }

    def take_step(self) -> tuple[Tensor, dict[str, Tensor]]:
        """One optimiser step; its loss and the objective's per-sample terms, on the device."""
        training = self.config.training
        with phase("batch"):
            data, labels = self._batch()
            shares = self._draws()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad()
        found = []
        for number, draws in enumerate(shares):
            own = slice(number, None, self.micro_batches)
            with self._gradients_stay_here() if draws is not shares[-1] else nullcontext():
                loss, terms = self.module(data[own], labels[own], draws)
                with phase("backward"):
                    # DistributedDataParallel averages over workers; the samples' weights already sum to 1 over all.
                    (loss * self.world_size).backward()
            found.append((loss.detach(), terms))
        with phase("optimizer"):
            self.optimizer.step()
        self.step += 1
        if self.step % training.ema_every == 0:
            with phase("ema"):
                self.ema.update_parameters(self.network)
        losses, terms = zip(*found, strict=True)
        return sum(losses), {name: torch.cat([values[name] for values in terms]) for name in terms[0]}

    def _gradients_stay_here(self) -> AbstractContextManager:
        """Inside, gradients are added up on this worker and not averaged over workers."""
        return self.module.no_sync() if self.world_size > 1 else nullcontext()

    def _draws(self) -> list[Draws]:
        """This worker's share of the current step's random numbers, one micro-batch after another."""
        config = self.config
        shape = (config.training.batch_size, *config.dataset.sample_shape)
        noise = normal(shape, generator(self.device, config.seed, "noise", self.step))
        random = generator("cpu", config.seed, "step", self.step)
        draws = self.objective.draw(noise, self.step / config.training.total_steps, random)
        draws = replace(draws, dropout_seed=random.initial_seed())
        # A micro-batch is what a worker would get if there were so many times more workers.
        virtual = self.world_size * self.micro_batches
        return [draws.share(rank, virtual).to(self.device) for rank in range(self.rank, virtual, self.world_size)]

    def _batch(self) -> tuple[Tensor, Tensor]:
        """This worker's share of the current step's samples, about in [−1, 1], and labels."""
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

    def held_tensors(self) -> list[Tensor]:
        """What is kept between steps: weights, their average, the optimiser's moments."""
        modules = (self.network, self.ema.module)
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [tensor for tensor in (*tensors, *moments) if isinstance(tensor, Tensor)]

    def averaged_network(self) -> nn.Module:
        """The network with the averaged weights, for evaluation and sampling."""
        if self.config.training.ema_dtype == "float32":
            return self.ema.module.eval()
        return copy.deepcopy(self.ema.module).float().eval()

    def _learning_rate(self) -> float:
        optimizer = self.config.optimizer
        return optimizer.learning_rate * min(1.0, (self.step + 1) / (optimizer.warmup_steps + 1))

    def earliest(self, step: int) -> int:
        """The smallest of the workers' steps."""
        return int(self._reduce(torch.tensor(step, device=self.device), "MIN"))

    def _check_finite(self, first_bad: Tensor) -> None:
        step = int(self._reduce(first_bad, "MIN"))
        if step < NEVER:
            raise NonFiniteLoss(
                f"the loss became infinite or NaN at step {step}; try a lower optimizer.learning_rate "
                f"(now {self.config.optimizer.learning_rate:g}) or a longer optimizer.warmup_steps"
            )

    def _means(self, totals: dict[str, Tensor]) -> dict[str, float]:
        if not totals:
            return {}
        sums = self._reduce(torch.stack(list(totals.values())), "SUM").tolist()
        return {f"loss/{name}": total / n for name, (total, n) in zip(totals, sums, strict=True) if n}

    def _reduce(self, value: Tensor, operation: str) -> Tensor:
        """ "SUM" or "MIN" over the workers."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value, getattr(torch.distributed.ReduceOp, operation))
        return value

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on exactly; random numbers depend on seed and step alone."""
        return {
            "step": self.step,
            "train_s": self.train_s,
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.train_s = state["step"], state["train_s"]
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        self.ema.n_averaged.fill_(self.step // self.config.training.ema_every)
        self._batches = None
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
