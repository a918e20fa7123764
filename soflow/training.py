"""The training loop: data order, optimiser steps, moving average, measurements, and the state that a resume needs."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from soflow import networks, objectives
from soflow.config import RunConfig
from soflow.data import DataSource
from soflow.images import to_network
from soflow.measure import PeakMemory, StepClock
from soflow.objectives.base import Draws, Objective
from soflow.randomness import generator

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
        losses = self.objective.losses(self.network, data, labels, draws)
        return (draws.weight * losses.loss).sum(), losses.terms


class Trainer:
    """One training run on one of `world_size` workers, which all hold the same weights.

    Attributes:
        step: optimiser steps done.
        network, ema: the trained weights and their moving average (ema.module).
        train_s: seconds spent in optimiser steps since the run began, over all resumes.
    """

    def __init__(self, config: RunConfig, source: DataSource, device: torch.device, rank: int = 0, world_size: int = 1):
        self.config, self.source, self.device = config, source, device
        self.rank, self.world_size = rank, world_size
        self.network = build_network(config, source.num_classes).to(device)
        self.objective = objectives.build(config, source.num_classes)
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(config.training.ema_decay))
        self.ema.requires_grad_(False)
        self.optimizer = build_optimizer(config, self.network)
        module = LossModule(self.network, self.objective)
        self.module = DistributedDataParallel(module) if world_size > 1 else module
        self.order = BatchOrder(len(source), config.training.batch_size, config.seed)
        self.step, self.train_s = 0, 0.0
        self._clock, self._memory = StepClock(device), PeakMemory(device)

    def advance(self, steps: int) -> dict[str, float]:
        """Take optimiser steps and return what was measured over them, means over samples, the same on every worker.

        Raises:
            NonFiniteLoss: naming the first step whose loss was infinite or NaN.
        """
        self.network.train()
        self._memory.reset()
        totals: dict[str, Tensor] = {}
        first_bad = torch.full((), NEVER, device=self.device)
        begin = time.perf_counter()
        for _ in range(steps):
            self._clock.start_step()
            loss, terms = self._optimizer_step()
            # No host synchronisation in the loop: sums and the first bad step (counted from 1) stay on the device.
            first_bad = torch.where(loss.isfinite(), first_bad, first_bad.clamp(max=self.step))
            for name, values in terms.items():
                pair = torch.stack([values.sum(), values.new_tensor(float(len(values)))])
                totals[name] = totals[name] + pair if name in totals else pair
        self._clock.stop()
        self.train_s += time.perf_counter() - begin
        self._check_finite(first_bad)
        return self._means(totals) | {
            "time/step_ms": self._clock.median_ms(),
            "time/train_s": self.train_s,
            "throughput/images_per_s": self.config.training.batch_size * 1e3 / self._clock.median_ms(),
            "memory/peak_mib": self._memory.peak_mib(),
        }

    def _optimizer_step(self) -> tuple[Tensor, dict[str, Tensor]]:
        training = self.config.training
        data, labels = self._batch()
        shape = (training.batch_size, *data.shape[1:])
        random = generator(self.device, self.config.seed, "step", self.step)
        draws = self.objective.draw(shape, self.step / training.total_steps, random).share(self.rank, self.world_size)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad()
        loss, terms = self.module(data, labels, draws)
        # DistributedDataParallel averages gradients over workers; the samples' weights already sum to 1 over all.
        (loss * self.world_size).backward()
        self.optimizer.step()
        self.ema.update_parameters(self.network)
        self.step += 1
        return loss.detach(), terms

    def _batch(self) -> tuple[Tensor, Tensor]:
        """This worker's share of the current step's data in [−1, 1] and labels."""
        indices = self.order.indices(self.step)[self.rank :: self.world_size]
        images, labels = self.source.batch(indices)
        labels = torch.from_numpy(labels).to(self.device)
        if not self.config.dataset.conditional:
            labels = torch.full_like(labels, self.source.num_classes)
        return to_network(images, self.device), labels

    def _learning_rate(self) -> float:
        optimizer = self.config.optimizer
        return optimizer.learning_rate * min(1.0, (self.step + 1) / (optimizer.warmup_steps + 1))

    def _check_finite(self, first_bad: Tensor) -> None:
        step = int(self._reduce(first_bad, "MIN"))
        if step < NEVER:
            raise NonFiniteLoss(
                f"the loss became infinite or NaN at step {step}; try a lower optimizer.learning_rate "
                f"(now {self.config.optimizer.learning_rate:g}) or a larger objective.weight_eps"
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
        self.ema.n_averaged.fill_(self.step)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


class BatchOrder:
    """Which samples each step sees: one seeded permutation per epoch, batches running on across epochs."""

    def __init__(self, num_samples: int, batch_size: int, seed: int):
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> np.ndarray:
        """[batch_size] sample indices of a step, counted from 0."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.num_samples
        self._epochs = {e: self._epochs[e] if e in self._epochs else self._permutation(e) for e in set(epochs.tolist())}
        return np.array(
            [self._epochs[e][p] for e, p in zip(epochs.tolist(), positions % self.num_samples, strict=True)]
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        return torch.randperm(self.num_samples, generator=generator("cpu", self.seed, "order", epoch)).numpy()


def build_network(config: RunConfig, num_classes: int) -> nn.Module:
    """The configured network with initial weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.random.manual_seed(config.seed)
        return networks.build(config, num_classes)


def build_optimizer(config: RunConfig, network: nn.Module) -> torch.optim.Optimizer:
    kinds = {"adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}
    options = config.optimizer
    extra = {"decoupled_weight_decay": True} if options.name == "radam" else {"fused": True}
    return kinds[options.name](
        network.parameters(),
        lr=options.learning_rate,
        betas=options.betas,
        weight_decay=options.weight_decay,
        **extra,
    )
