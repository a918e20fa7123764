"""Metrics of extracted features: torch-fidelity's, the error of its KID, density, coverage and CMMD."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

KID_SUBSETS, KID_SUBSET_SIZE = 10, 1000
NEIGHBORS = 5
"""Real images in a neighborhood, of density and coverage."""
CMMD_SIGMA, CMMD_SCALE = 10, 1000
ROWS = 500
"""Rows of distances in memory at a time."""


def fid(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Compute the Fréchet distance of two sets from their statistics `mu` [D] and `sigma` [D, D], float64."""
    return fid_statistics_to_metric(first, second, verbose=False)[torch_fidelity.KEY_METRIC_FID]


def kid(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Compute the squared kernel distance of features [N, D] and [M, D]: mean over random subsets, and their spread."""
    size = kid_subset_size(len(first), len(second))
    result = kid_features_to_metric(first, second, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False)
    return result[torch_fidelity.KEY_METRIC_KID_MEAN], result[torch_fidelity.KEY_METRIC_KID_STD]


def kid_error(generated: Tensor, real: Tensor, spread: float) -> float:
    """Compute the standard error of `kid` as an estimate of a generator's distance from this reference.

    Its square is the sum of two variances. One is that of the unbiased distance between all N generated and all M real
    images, which is what subsets estimate, by the jackknife over the generated images. The other is that of the mean
    over the subsets around it. How the reference was drawn is left out.

    Args:
        generated: [N, D], N > 2.
        real: [M, D].
        spread: standard deviation over the subsets, from `kid`.
    """
    by_subsets = spread**2 / (KID_SUBSETS - 1)
    n, means = len(generated), []
    for rows in generated.split(ROWS):
        same, other = ((rows @ features.mT / rows.shape[1] + 1) ** 3 for features in (generated, real))
        own = ((rows**2).mean(1) + 1) ** 3
        means.append(torch.stack([(same.double().sum(1) - own) / (n - 1), other.double().mean(1)]))
    same, other = torch.cat(means, 1)
    # Without image i, the distance changes by 2 (mean of same_i − same_i) / (n − 2) and 2 (other_i − mean) / (n − 1).
    changes = 2 * (same.mean() - same) / (n - 2) + 2 * (other - other.mean()) / (n - 1)
    by_images = (n - 1) / n * (changes**2).sum().item()
    return math.sqrt(by_images + by_subsets)


def kid_subset_size(first: int, second: int) -> int:
    """Return the size of a KID subset: 1,000, or the size of the smaller set."""
    return min(first, second, KID_SUBSET_SIZE)


def precision_recall(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Compute `precision` and `recall` (arXiv 1904.06991) of features [N, D] and [M, D], N, M > 3."""
    result = prc_features_to_metric(generated, real, verbose=False)
    return {
        "precision": result[torch_fidelity.KEY_METRIC_PRECISION],
        "recall": result[torch_fidelity.KEY_METRIC_RECALL],
    }


def density_coverage(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Compute `density` and `coverage` (arXiv 2002.09797) of features [N, D] and [M, D].

    Density is how many neighborhoods of real images contain a generated one, on average, over the number expected of
    equal distributions, so that it may exceed 1. Coverage is the fraction of real images in whose neighborhood is a
    generated one; unlike recall, it does not rise with generated outliers. A neighborhood reaches to the fifth nearest
    real image.
    """
    neighbors = min(NEIGHBORS, len(real) - 1)
    # Without matrix products, whose rounding would depend on the number of rows.
    distances = functools.partial(torch.cdist, x2=real, compute_mode="donot_use_mm_for_euclid_dist")
    radii = torch.cat([distances(part).kthvalue(neighbors + 1).values for part in real.split(ROWS)])
    count, covered = 0, torch.zeros(len(real), dtype=torch.bool)
    for part in generated.split(ROWS):
        inside = distances(part) < radii
        count += int(inside.sum())
        covered |= inside.any(0)
    return {"density": count / (neighbors * len(generated)), "coverage": covered.double().mean().item()}


def cmmd(first: Tensor, second: Tensor) -> float:
    """Compute CMMD (arXiv 2401.09603) of CLIP's features [N, D] and [M, D]: 1,000 times their squared MMD.

    The kernel is Gaussian with σ = 10, of features of unit length. As published, the means over pairs include each
    image with itself, so that equal distributions have a CMMD above zero that falls with N and M.
    """
    first, second = (torch.nn.functional.normalize(values.double()) for values in (first, second))

    def mean_kernel(one: Tensor, other: Tensor) -> float:
        # Of unit length: |x - y|^2 = 2 - 2 x·y.
        sums = [torch.exp((rows @ other.mT - 1) / CMMD_SIGMA**2).sum() for rows in one.split(ROWS)]
        return (torch.stack(sums).sum() / (len(one) * len(other))).item()

    distance = mean_kernel(first, first) + mean_kernel(second, second) - 2 * mean_kernel(first, second)
    return CMMD_SCALE * distance


def inception_score(logits: Tensor) -> float:
    """Compute the Inception score of logits [N, classes], N ≥ 10, averaged over 10 splits.

    It is the exponential of the mean KL divergence of p(class | image) from p(class). Scores of a small classifier in
    place of Inception are comparable only with each other.
    """
    return isc_features_to_metric(logits)[torch_fidelity.KEY_METRIC_ISC_MEAN]
