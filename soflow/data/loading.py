"""Batches in a run's order, read ahead by other processes where reading takes long."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from soflow.data.base import DataError, DataSource
from soflow.randomness import generator

AHEAD = 4
"""Batches that each loading process prepares ahead."""


def batches(
    source: DataSource,
    order: BatchOrder,
    steps: range,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    processes: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One worker's share of each step's stored samples and labels, on `device`.

    Args:
        processes: how many read ahead; with 0 each batch is read when it is wanted.
    """
    loader = DataLoader(
        _ByIndices(source),
        sampler=_Steps(order, steps, rank, world_size),
        batch_size=None,  # the sampler's items are whole batches
        num_workers=processes,
        prefetch_factor=AHEAD if processes else None,
        pin_memory=device.type == "cuda",
        generator=generator("cpu", 0, "loading"),  # else each start would advance the global random state
    )
    for item in loader:
        if isinstance(item, DataError):
            raise item
        samples, labels = item
        yield samples.to(device, non_blocking=True), labels.to(device, non_blocking=True)


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


class _ByIndices(Dataset):
    """A data source as torch's DataLoader wants it: item `indices` is a batch."""

    def __init__(self, source: DataSource):
        self.source = source

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray] | DataError:
        try:
            return self.source.batch(indices)
        except DataError as error:
            return error  # raised, it would arrive wrapped in the loading process's traceback


class _Steps:
    """The indices of one worker's share of each step."""

    def __init__(self, order: BatchOrder, steps: range, rank: int, world_size: int):
        self.order, self.steps, self.rank, self.world_size = order, steps, rank, world_size

    def __iter__(self) -> Iterator[np.ndarray]:
        for step in self.steps:
            yield self.order.indices(step)[self.rank :: self.world_size]

    def __len__(self) -> int:
        return len(self.steps)
