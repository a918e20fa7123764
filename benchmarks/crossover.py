"""At which gap t − l does rounding exceed the Taylor error of SoFlow's consistency loss, and how small may the gap be?

The loss replaces a derivative along the flow by a finite difference over the gap t − l = r (t − s). Relative to the
gradient in the limit r → 0, g₀, this leaves a Taylor error, which decreases with r, and a rounding error, which grows
as 1/r:

- Taylor: ‖g₆₄(r) − g₀‖ / ‖g₀‖, all in float64, where rounding is negligible;
- total: ‖g(r) − g₀‖ / ‖g₀‖ with the calls of the finite difference in float32, TensorFloat-32 or bfloat16.

Predicted: both are equal where C r = u / r, r* = √(u / C), with u the unit roundoff and C the Taylor error over r at
r = 0.001; the total error is smallest there. Measured: the r of the smallest total error, on a grid of four values per
decade, and the smallest usable r, down to which the total error stays below 10 %: a possible end of a schedule. Both
use the networks and batches of benchmarks/numerics.py; the table shows the median over seeds with minimum and maximum.
l is kept at least 1e-4 below t, as in training.

    python benchmarks/crossover.py --out table.md --chart chart.png
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numerics import (
    ROUNDING_UNITS,
    Case,
    distance,
    exact_gradient,
    in_float64,
    rounded_gradient,
    spread,
    trained,
)
from torch import Tensor

from soflow.objectives.base import Draws
from soflow.objectives.soflow import SoFlow

RATIOS = tuple(10.0 ** (-exponent / 4) for exponent in range(21))
"""1 to 1e-5."""
LIMIT, SLOPE_AT = 1e-6, 1e-3
"""r of the limit r → 0 in float64, and r at which the slope of the Taylor error is measured."""
USABLE = 0.1
"""Largest usable relative error."""


@dataclass(frozen=True)
class Errors:
    """Errors of one network's gradient by gap ratio.

    Attributes:
        taylor: Taylor error, in float64.
        total: total error, by precision.
        slope: slope C of the Taylor error.
        mean_gap: mean of t − l over the batch.
    """

    taylor: dict[float, float]
    total: dict[str, dict[float, float]]
    slope: float
    mean_gap: dict[float, float]

    def predicted(self, precision: str) -> float:
        """Return the ratio r* at which the predicted rounding and Taylor errors are equal."""
        return math.sqrt(ROUNDING_UNITS[precision] / self.slope)

    def best(self, precision: str) -> float:
        """Return the ratio with the smallest total error."""
        return min(self.total[precision], key=self.total[precision].get)

    def smallest_usable(self, precision: str) -> float:
        """Return the smallest ratio, at most the best, down to which the total error is below USABLE; NaN if none."""
        usable, total = math.nan, self.total[precision]
        for ratio in sorted((ratio for ratio in total if ratio <= self.best(precision)), reverse=True):
            if total[ratio] >= USABLE:
                break
            usable = ratio
        return usable


def errors(case: Case) -> Errors:
    """Measure the errors of a network's gradient at all ratios."""

    def exact(draws: Draws) -> Tensor:
        return exact_gradient(case.config(SLOPE_AT), case.network, case.data, case.labels, draws)

    def unlimited_draws(ratio: float) -> Draws:
        """Draw times without training's lower limit of 1e-4 for t − l."""
        draws = in_float64(case.draws(ratio))
        return replace(draws, l=draws.t - ratio * (draws.t - draws.s))

    limit = exact(unlimited_draws(LIMIT))
    taylor, mean_gap, total = {}, {}, {precision: {} for precision in ROUNDING_UNITS}
    for ratio in RATIOS:
        draws = case.draws(ratio)
        taylor[ratio] = distance(exact(in_float64(draws)), limit)
        mean_gap[ratio] = (draws.t - draws.l).mean().item()
        for precision in ROUNDING_UNITS:
            config = case.config(ratio)
            rounded = rounded_gradient(config, SoFlow, precision, case.network, case.data, case.labels, draws)
            total[precision][ratio] = distance(rounded, limit)
    slope = distance(exact(unlimited_draws(SLOPE_AT)), limit) / SLOPE_AT
    return Errors(taylor, total, slope, mean_gap)


def table(results: list[Errors]) -> list[str]:
    """Make a Markdown table with a row per precision."""
    lines = [
        "| precision | r* predicted | r* measured | error at r* | smallest usable r | smallest usable t − l, mean |",
        "|---|---|---|---|---|---|",
    ]
    for precision in ROUNDING_UNITS:
        smallest = [min(result.total[precision].values()) for result in results]
        usable = [result.smallest_usable(precision) for result in results]
        gaps = [result.mean_gap.get(ratio, math.nan) for result, ratio in zip(results, usable, strict=True)]
        cells = (
            spread([result.predicted(precision) for result in results]),
            spread([result.best(precision) for result in results]),
            spread(smallest),
            *(["none"] * 2 if any(map(math.isnan, usable)) else (spread(usable), spread(gaps))),
        )
        lines.append(f"| {precision} | {' | '.join(cells)} |")
    return lines


def chart(results: list[Errors], path: Path) -> None:
    """Draw the errors against r, with the median, minimum and maximum over networks."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    curves = {"Taylor error alone (float64)": [result.taylor for result in results]}
    curves |= {precision: [result.total[precision] for result in results] for precision in ROUNDING_UNITS}
    for (name, by_seed), color in zip(curves.items(), ("#6b7280", "#2563eb", "#d97706", "#b91c1c"), strict=True):
        values = np.array([[curve[ratio] for ratio in RATIOS] for curve in by_seed])
        style = "--" if name.startswith("Taylor") else "-"
        axes.plot(RATIOS, np.median(values, axis=0), style, color=color, label=name, linewidth=2)
        axes.fill_between(RATIOS, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
        if name in ROUNDING_UNITS:
            predicted = statistics.median(result.predicted(name) for result in results)
            axes.axvline(predicted, color=color, linestyle=":", linewidth=1)
    axes.axhline(USABLE, color="#9ca3af", linewidth=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="r = (t − l) / (t − s)",
        ylabel="relative error of the gradient",
        title="Total error; dotted: predicted crossover to rounding errors",
    )
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="networks (default 5)")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each (default 300)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default cpu")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to")
    parser.add_argument("--chart", type=Path, help="PNG file to draw the errors to")
    options = parser.parse_args()
    results = []
    for seed in range(options.seeds):
        results.append(errors(trained("euler", seed, options.steps, options.device)))
        print(f"seed {seed}: predicted {[f'{results[-1].predicted(p):.2g}' for p in ROUNDING_UNITS]}", flush=True)
    lines = table(results)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    if options.chart:
        chart(results, options.chart)


if __name__ == "__main__":
    main()
