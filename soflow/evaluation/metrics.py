"""torch-fidelity's metrics of features that have been extracted already."""

from __future__ import annotations

import numpy as np
import torch_fidelity
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

KID_SUBSETS, KID_SUBSET_SIZE = 10, 1000


def fid(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Fréchet distance of two sets' statistics: `mu` [D] and `sigma` [D, D], float64."""
    return fid_statistics_to_metric(first, second, verbose=False)[torch_fidelity.KEY_METRIC_FID]


def kid(first: Tensor, second: Tensor) -> float:
    """Squared kernel distance of features [N, D] and [M, D], the mean over random subsets of each."""
    size = kid_subset_size(len(first), len(second))
    found = kid_features_to_metric(first, second, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False)
    return found[torch_fidelity.KEY_METRIC_KID_MEAN]


def kid_subset_size(first: int, second: int) -> int:
    """1,000, or as many as the smaller of two sets has."""
    return min(first, second, KID_SUBSET_SIZE)


def precision_recall(generated: Tensor, real: Tensor) -> dict[str, float]:
    """`precision` and `recall` (arXiv 1904.06991) of features [N, D] and [M, D], each more than 3."""
    found = prc_features_to_metric(generated, real, verbose=False)
    return {
        "precision": found[torch_fidelity.KEY_METRIC_PRECISION],
        "recall": found[torch_fidelity.KEY_METRIC_RECALL],
    }


def inception_score(logits: Tensor) -> float:
    """exp of the mean divergence of p(class | image) from p(class), over 10 splits of logits [N, classes], N ≥ 10.

    With a small classifier in Inception's place it is that classifier's score, comparable with itself only.
    """
    return isc_features_to_metric(logits)[torch_fidelity.KEY_METRIC_ISC_MEAN]
