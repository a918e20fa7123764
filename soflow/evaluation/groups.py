"""FID with its sampling error, from images generated in groups whose feature moments are kept on disk."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soflow.evaluation.cache import cached
from soflow.evaluation.metrics import fid
from soflow.evaluation.moments import Moments


@dataclass(frozen=True)
class FidEstimate:
    """FID of all images, with its sampling error."""

    value: float
    error: float
    """Standard error over sets of as many images, by the delete-a-group jackknife."""


def places_of(group: int, num_groups: int, num_samples: int) -> Tensor:
    """Return the indices of a group's images, in ascending order: a random part, as the jackknife assumes.

    Groups of consecutive images would lack classes, which are generated in turn.
    """
    shuffled = np.random.default_rng(0).permutation(num_samples)
    return torch.from_numpy(np.sort(shuffled[group::num_groups]))


def moments_of(path: Path, features: Callable[[], Iterable[Tensor]], dimension: int) -> Moments:
    """Return the moments of a group's features [B, D]; they are computed if the file is missing or damaged."""

    def compute() -> dict[str, Tensor]:
        moments = Moments(dimension, torch.device("cpu"))
        for part in features():
            moments.add(part)
        return moments.state()

    return Moments.of_state(cached(path, compute))


def estimate(groups: Sequence[Moments], reference: dict[str, np.ndarray]) -> FidEstimate:
    """Compute the FID of all groups together and its standard error.

    The jackknife leaves out one of g groups at a time: se² = (g − 1)/g Σ (θ_i − mean θ)² (Efron and Tibshirani 1993, An
    Introduction to the Bootstrap, chapter 11). FID's bias from the number of images is nearly equal in all θ_i.
    """
    value = fid(joined(groups).statistics(), reference)
    without = [fid(joined([*groups[:i], *groups[i + 1 :]]).statistics(), reference) for i in range(len(groups))]
    count, mean = len(groups), statistics.fmean(without)
    return FidEstimate(value, ((count - 1) / count * sum((one - mean) ** 2 for one in without)) ** 0.5)


def joined(groups: Sequence[Moments]) -> Moments:
    """Join the moments of groups, always in the same order."""
    total = Moments(len(groups[0].mean), torch.device("cpu"))
    for group in groups:
        total.join(group)
    return total
