"""Load batches in the order of a run, optionally prefetched by other processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from soflow.data.base import DataError, DataSource
from soflow.randomness import generator

PREFETCH_FACTOR = 4
"""Number of batches prefetched by each loading process."""


def batches(
    source: DataSource,
    order: BatchOrder,
    steps: range,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    processes: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one worker's share of each step's stored samples and labels, on `device`.

    Args:
        processes: number of loading processes; with 0, each batch is read on demand.
    """
    loader = DataLoader(
        _ByIndices(source),
        sampler=_Steps(order, steps, rank, world_size),
        batch_size=None,  # the sampler's items are whole batches
        num_workers=processes,
        prefetch_factor=PREFETCH_FACTOR if processes else None,
        pin_memory=device.type == "cuda",
        generator=generator("cpu", 0, "loading"),  # otherwise each start would advance the global random state
    )
    for item in loader:
        if isinstance(item, DataError):
            raise item
        samples, labels = item
        yield samples.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class BatchOrder(ABC):
    """Order in which a run sees the samples; it depends on the seed and the step only."""

    def __init__(self, num_samples: int, batch_size: int, seed: int):
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed

    @abstractmethod
    def indices(self, step: int) -> np.ndarray:
        """Return the sample indices [batch_size] of a step, counted from 0."""


class EpochOrder(BatchOrder):
    """One seeded permutation of all samples per epoch; a batch may span two epochs or more."""

    def __init__(self, num_samples: int, batch_size: int, seed: int):
        super().__init__(num_samples, batch_size, seed)
        self._epochs: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> np.ndarray:
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.num_samples
        self._epochs = {e: self._epochs[e] if e in self._epochs else self._permutation(e) for e in set(epochs.tolist())}
        return np.array(
            [self._epochs[e][p] for e, p in zip(epochs.tolist(), positions % self.num_samples, strict=True)]
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        return torch.randperm(self.num_samples, generator=generator("cpu", self.seed, "order", epoch)).numpy()


class ClassOrder(BatchOrder):
    """Batches of few classes, with about equally many images each; every image has the same chance in every step.

    Classes are drawn in proportion to their images by systematic sampling: equidistant points, with a random start, on
    all images in a random order of the classes. A class comes several times if it has more than its part of the images.

    Args:
        labels: labels [N] of all samples.
        images_per_class: divided into the batch size, the number of classes in a batch.
    """

    def __init__(self, labels: np.ndarray, images_per_class: int, batch_size: int, seed: int):
        super().__init__(len(labels), batch_size, seed)
        self.parts = max(1, round(batch_size / images_per_class))
        sizes = np.unique(labels, return_counts=True)[1]
        self._members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])

    def indices(self, step: int) -> np.ndarray:
        random = generator("cpu", self.seed, "classes", step)
        order = torch.randperm(len(self._members), generator=random).numpy()
        ends = np.cumsum([len(self._members[label]) for label in order])
        points = (torch.rand((), generator=random).item() + np.arange(self.parts)) * self.num_samples / self.parts
        chosen = Counter(order[np.searchsorted(ends, points, side="right")].tolist())
        size = -(-self.batch_size // self.parts)
        drawn = [_without_repetition(self._members[label], n * size, random) for label, n in chosen.items()]
        parts = np.concatenate(drawn).reshape(self.parts, size)
        if parts.size > self.batch_size:  # the last ones lose an image; every class is as likely to be among them
            parts = np.roll(parts, int(torch.randint(self.parts, (), generator=random)), axis=0)
        # Every parts-th image is of the same class, so all classes are among the first samples, on flow matching.
        return parts.T.reshape(-1)[: self.batch_size]


def _without_repetition(members: np.ndarray, count: int, random: torch.Generator) -> np.ndarray:
    """Draw `count` members, each again only after all others."""
    rounds = -(-count // len(members))
    drawn = torch.cat([torch.randperm(len(members), generator=random) for _ in range(rounds)])
    return members[drawn[:count].numpy()]


class _ByIndices(Dataset):
    """Adapter from a data source to a torch Dataset whose item `indices` is a batch."""

    def __init__(self, source: DataSource):
        self.source = source

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray] | DataError:
        try:
            return self.source.batch(indices)
        except DataError as error:
            return error  # if raised, DataLoader would wrap it in the traceback of the loading process


class _Steps:
    """Sampler of the indices of one worker's share of each step."""

    def __init__(self, order: BatchOrder, steps: range, rank: int, world_size: int):
        self.order, self.steps, self.rank, self.world_size = order, steps, rank, world_size

    def __iter__(self) -> Iterator[np.ndarray]:
        for step in self.steps:
            yield self.order.indices(step)[self.rank :: self.world_size]

    def __len__(self) -> int:
        return len(self.steps)
