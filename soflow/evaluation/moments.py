"""What each worker keeps of its own samples' features, and how workers put it together without exchanging images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """This process among the workers of a run; every call below is one that all of them make."""

    device: torch.device
    """Of this worker; the process group's backend carries tensors that are on it."""
    rank: int = 0
    size: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all workers' tensors of one shape, which takes the place of `value`."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def from_first(self, measures: dict[str, Callable[[], float]]) -> dict[str, float]:
        """What worker 0 finds, told to all of them, so that they go on with the same bits."""
        values = [measure() if self.rank == 0 else 0.0 for measure in measures.values()]
        told = self.sum(torch.tensor(values, dtype=torch.float64, device=self.device))
        return dict(zip(measures, told.tolist(), strict=True))


class Moments:
    """Number n, mean [D] and scatter Σ (f − mean)(f − mean)ᵀ [D, D] of features f, in float64.

    Sets are joined by the update of Chan, Golub and LeVeque (1979, "Updating formulae and a pairwise algorithm for
    computing sample variances"). Sums of f and f fᵀ would be shorter to write, but their difference cancels where the
    mean is large beside the spread.
    """

    def __init__(self, dimension: int, device: torch.device):
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Take in features [B, D]."""
        if len(features):
            features = features.to(self.mean)
            mean = features.mean(0)
            self._join(len(features), mean, (features - mean).T @ (features - mean))

    def join(self, other: Moments) -> None:
        """Take in another set."""
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total, apart = self.count + count, mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self.scatter += scatter + torch.outer(apart, apart) * (self.count * count / total)
        self.count = total

    def merge(self, workers: Workers) -> None:
        """Become the moments of all workers' sets together: each scatter is moved to the common mean, then added."""
        total = workers.sum(self.mean.new_tensor(float(self.count)))
        mean = workers.sum(self.mean * (self.count / total))
        apart = self.mean - mean
        self.scatter = workers.sum(self.scatter + torch.outer(apart, apart) * self.count)
        self.count, self.mean = int(total), mean

    def statistics(self) -> dict[str, np.ndarray]:
        """`mu` [D] and the unbiased covariance `sigma` [D, D], by torch-fidelity's names; it needs two features."""
        sigma = self.scatter / (self.count - 1)
        return {"mu": self.mean.cpu().numpy(), "sigma": sigma.cpu().numpy()}


class Rows:
    """This worker's rows of a float32 table [N, width] that holds one row per sample, kept on the CPU.

    Args:
        limit: rows of the table; samples whose place is not below it are left out. None for one row per sample.
    """

    def __init__(self, width: int, limit: int | None = None):
        self.width, self.limit = width, limit
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, places: Tensor, values: Tensor) -> None:
        """Keep values [B, width] as the table's rows at places [B]; negative places are left out."""
        wanted = places >= 0 if self.limit is None else (places >= 0) & (places < self.limit)
        self._parts.append((places[wanted].cpu(), values[wanted].float().cpu()))

    def merge(self, workers: Workers, num_samples: int) -> Tensor:
        """The table of all workers' rows, on the CPU, in the order of places; there are `num_samples` places."""
        length = num_samples if self.limit is None else min(num_samples, self.limit)
        table = torch.zeros(length, self.width)
        for places, values in self._parts:
            table[places] = values
        # Each row is zero but on the worker that holds it, so adding is exact.
        return workers.sum(table.to(workers.device)).cpu()
