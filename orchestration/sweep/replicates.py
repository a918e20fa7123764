"""Several seeds of one configuration: the mean of their results and how far it can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of two or more values and the bounds of its 95 % interval by Student's t distribution."""
    from scipy import stats

    mean = statistics.fmean(values)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    half = float(quantile) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def over_seeds(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """The first seed's final metrics, with the mean of all seeds' FID for `fid`, its interval, and each seed's."""
    if len(metrics) == 1:
        return dict(metrics[0])
    fids = [each["fid"] for each in metrics]
    mean, low, high = mean_interval(fids)
    of_each = {f"fid/seed_{number}": fid for number, fid in enumerate(fids)}
    return metrics[0] | {"fid": mean, "fid/mean": mean, "fid/low": low, "fid/high": high} | of_each
