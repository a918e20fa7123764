"""Do the metrics agree on which way to sample is better? Rank correlations between them, and the best by each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestration.checkpoint_sweep.config import badness
from orchestration.checkpoint_sweep.results import Result

METRICS = ("fid", "kid", "precision", "recall", "density", "coverage", "class_consistency", "cmmd")
FEWEST = 3
"""Fewest points that are ranked."""


@dataclass(frozen=True)
class Agreement:
    """One metric beside the metric by which points were chosen."""

    metric: str
    best: Result
    """The best point by this metric."""
    tau: float
    """Kendall's τ-b with the chosen metric: 1 = same order, −1 = reversed; better is the same direction for both."""
    rank_of_chosen: int
    """Rank by this metric of the point that is best by the chosen one; equal values share the best rank."""


def agreements(results: Sequence[Result], chosen: str) -> list[Agreement]:
    """Compare all metrics with the chosen one; those without any scatter are left out."""
    from scipy.stats import kendalltau

    known = [metric for metric in METRICS if all(metric in result.metrics for result in results)]
    if len(results) < FEWEST or chosen not in known:
        return []

    best_by_chosen, found = min(results, key=lambda result: badness(result.metrics, chosen)), []
    for metric in known:
        values = [badness(result.metrics, metric) for result in results]
        if len(set(values)) == 1:
            continue
        tau = float(kendalltau(values, [badness(result.metrics, chosen) for result in results]).statistic)
        rank = 1 + sum(value < badness(best_by_chosen.metrics, metric) for value in values)
        found.append(Agreement(metric, min(results, key=lambda result: badness(result.metrics, metric)), tau, rank))
    return found
