"""Inputs of the optimizer steps: this worker's share of the samples and of the random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from soflow import codecs
from soflow.conditioning import join
from soflow.config import RunConfig
from soflow.data.augmentation import EDM, NUM_PARAMETERS, UPRIGHT, augment
from soflow.data.base import DataSource
from soflow.data.loading import BatchOrder, ClassOrder, EpochOrder, batches
from soflow.objectives.base import Draws, Objective, normal
from soflow.randomness import generator


class StepInputs:
    """Samples and random numbers of every step of one worker; they depend on seed and step only.

    Args:
        micro_batches: number of shares into which the worker divides its samples of a step.
    """

    def __init__(
        self,
        config: RunConfig,
        source: DataSource,
        objective: Objective,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ):
        self.config, self.source, self.objective, self.device = config, source, objective, device
        self.rank, self.world_size, self.micro_batches = rank, world_size, micro_batches
        self.codec = codecs.build(config.dataset, device)
        self.order = _order(config, source)
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None

    def draws(self, step: int, share: tuple[Tensor, Tensor] | None = None) -> list[Draws]:
        """Draw this worker's share of a step's random numbers, one item per micro-batch.

        Args:
            share: this worker's samples and labels, which losses need, and all workers pass.
        """
        config = self.config
        shape = (config.training.batch_size, *config.dataset.sample_shape)
        noise = normal(shape, generator(self.device, config.seed, "noise", step))
        random = generator("cpu", config.seed, "step", step)
        draws = self.objective.draw(noise, step / config.training.total_steps, random)
        batch = self._whole_batch(*share) if share and self.objective.uses_batch else None
        draws = replace(draws, dropout_seed=random.initial_seed(), batch=batch)
        # Micro-batches are shares of world_size · micro_batches virtual workers.
        virtual = self.world_size * self.micro_batches
        return [draws.share(rank, virtual).to(self.device) for rank in range(self.rank, virtual, self.world_size)]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Load this worker's share of a step's samples, roughly in [−1, 1], and labels.

        Steps follow one another; call `restart` before any other order.
        """
        config, dataset = self.config, self.config.dataset
        if self._batches is None:
            steps = range(step, config.training.total_steps)
            place = (self.device, self.rank, self.world_size, dataset.loading_processes)
            self._batches = batches(self.source, self.order, steps, *place)
        stored, labels = next(self._batches)
        if not dataset.conditional:
            labels = torch.full_like(labels, self.source.num_classes)
        if dataset.latent:
            random = generator(self.device, config.seed, "encode", step)
            noise = normal((config.training.batch_size, *dataset.sample_shape), random)
            return self.codec.encode(stored, noise[self.rank :: self.world_size].to(self.device)), labels
        data = self.codec.encode(stored)
        if not dataset.augmentation:
            return data, labels
        random = generator(self.device, config.seed, "augmentation", step)
        kinds = EDM if dataset.augmentations == "edm" else UPRIGHT
        data, parameters = augment(data, dataset.augmentation, random, kinds, self.rank, self.world_size)
        return data, join(labels, parameters)

    def restart(self) -> None:
        """Let the next batch be of any step."""
        self._batches = None

    def _whole_batch(self, data: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Collect the samples and labels of all workers, in the order of the batch."""
        if self.world_size == 1:
            return data, labels
        return self._from_all_workers(data), self._from_all_workers(labels)

    def _from_all_workers(self, values: Tensor) -> Tensor:
        shares = [torch.empty_like(values) for _ in range(self.world_size)]
        torch.distributed.all_gather(shares, values)
        return torch.stack(shares, 1).flatten(0, 1)

    def example(self, count: int) -> tuple[Tensor, Tensor]:
        """Load the data's first `count` samples, and labels, as a batch that belongs to no step."""
        dataset = self.config.dataset
        stored, classes = self.source.batch(np.arange(count) % len(self.source))
        labels = torch.from_numpy(classes).to(self.device)
        if not dataset.conditional:
            labels = torch.full_like(labels, self.source.num_classes)
        if dataset.augmentation:
            labels = join(labels, torch.zeros(len(labels), NUM_PARAMETERS, device=self.device))
        return self.codec.encode(torch.from_numpy(stored).to(self.device)), labels


def _order(config: RunConfig, source: DataSource) -> BatchOrder:
    batch_size, images_per_class = config.training.batch_size, config.objective.same_class_images
    if images_per_class is None or not config.dataset.conditional:
        return EpochOrder(len(source), batch_size, config.seed)
    return ClassOrder(source.labels, images_per_class, batch_size, config.seed)
