"""Feature statistics of each worker's samples, and their all-reduce over workers without exchanging images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """Process group of a run as seen by one worker. All methods are collective: every worker must call them."""

    device: torch.device
    """Device of this worker, with tensors that the process group's backend can reduce."""
    rank: int = 0
    size: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """All-reduce a tensor by summation, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def from_first(self, measures: dict[str, Callable[[], float]]) -> dict[str, float]:
        """Compute values on worker 0 and broadcast them, so that all workers have bit-identical values."""
        values = [measure() if self.rank == 0 else 0.0 for measure in measures.values()]
        broadcast = self.sum(torch.tensor(values, dtype=torch.float64, device=self.device))
        return dict(zip(measures, broadcast.tolist(), strict=True))


class Moments:
    """Number n, mean [D] and scatter Σ (f − mean)(f − mean)ᵀ [D, D] of features f, in float64.

    Sets are joined by the update of Chan, Golub and LeVeque (1979, "Updating formulae and a pairwise algorithm for
    computing sample variances"). Sums of f and f fᵀ would be simpler, but suffer from cancellation if the mean is large
    compared to the standard deviation.
    """

    def __init__(self, dimension: int, device: torch.device):
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add features [B, D]."""
        if len(features):
            features = features.to(self.mean)
            mean = features.mean(0)
            self._join(len(features), mean, (features - mean).T @ (features - mean))

    def join(self, other: Moments) -> None:
        """Add the moments of another set."""
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total, offset = self.count + count, mean - self.mean
        self.mean = self.mean + offset * (count / total)
        self.scatter += scatter + torch.outer(offset, offset) * (self.count * count / total)
        self.count = total

    def merge(self, workers: Workers) -> None:
        """Merge the moments of all workers in place: shift each scatter to the global mean, then sum."""
        total = workers.sum(self.mean.new_tensor(float(self.count)))
        mean = workers.sum(self.mean * (self.count / total))
        offset = self.mean - mean
        self.scatter = workers.sum(self.scatter + torch.outer(offset, offset) * self.count)
        self.count, self.mean = int(total), mean

    def statistics(self) -> dict[str, np.ndarray]:
        """Compute `mu` [D] and the unbiased covariance `sigma` [D, D], named as in torch-fidelity; needs count ≥ 2."""
        sigma = self.scatter / (self.count - 1)
        return {"mu": self.mean.cpu().numpy(), "sigma": sigma.cpu().numpy()}

    def state(self) -> dict[str, Tensor]:
        """Return the content, for a file."""
        return {"count": torch.tensor(self.count), "mean": self.mean.cpu(), "scatter": self.scatter.cpu()}

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> Moments:
        """Restore the content of `state`, on the CPU."""
        moments = cls(len(state["mean"]), torch.device("cpu"))
        moments.count, moments.mean, moments.scatter = int(state["count"]), state["mean"], state["scatter"]
        return moments


class Rows:
    """This worker's rows of a float32 table [N, width] with one row per sample, stored on the CPU.

    Args:
        limit: number of rows of the table; samples with place ≥ limit are dropped. None keeps all samples.
    """

    def __init__(self, width: int, limit: int | None = None):
        self.width, self.limit = width, limit
        self._chunks: list[tuple[Tensor, Tensor]] = []

    def add(self, places: Tensor, values: Tensor) -> None:
        """Store values [B, width] as rows at places [B]; drop negative places."""
        kept = places >= 0 if self.limit is None else (places >= 0) & (places < self.limit)
        self._chunks.append((places[kept].cpu(), values[kept].float().cpu()))

    def merge(self, workers: Workers, num_samples: int) -> Tensor:
        """Merge all workers' rows into one table on the CPU, in the order of the places 0 to num_samples − 1."""
        length = num_samples if self.limit is None else min(num_samples, self.limit)
        table = torch.zeros(length, self.width)
        for places, values in self._chunks:
            table[places] = values
        # Every row is zero on all workers but one, so the sum is exact.
        return workers.sum(table.to(workers.device)).cpu()
