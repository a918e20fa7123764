"""Where does rounding take over from the Taylor error of SoFlow's consistency loss, and how small may t − l become?

The loss replaces a derivative along the flow by a quotient over the gap t − l = r (t − s). Against the gradient in the
limit r → 0, g₀, that leaves a Taylor error that falls as r, and rounding amplified 1/r times that grows:

- Taylor: ‖g₆₄(r) − g₀‖ / ‖g₀‖, all in float64, so that rounding does not count;
- total: ‖g(r) − g₀‖ / ‖g₀‖ with the quotient's calls in float32, TensorFloat-32 or bfloat16.

Predicted is that both are equal where C r = u / r, r* = √(u / C), with u the rounding unit and C the Taylor error over
r at r = 0.001; the total error is smallest there. Measured is the r of the smallest total error on a grid of four
values a decade, and the smallest r up from which the total error stays below 10 % until it is smallest: what a schedule
may end with. Both for the networks and batches of benchmarks/numerics.py, as median over seeds with the smallest and
the largest. l is kept 1e-4 below t, as in training.

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
"""r that stands for 0 in float64, and where the Taylor error's slope is taken."""
USABLE = 0.1


@dataclass(frozen=True)
class Errors:
    """Of one network, by ratio.

    Attributes:
        taylor: in float64.
        total: by precision.
        slope: of the Taylor error, C.
        mean_gap: mean of t − l over the batch.
    """

    taylor: dict[float, float]
    total: dict[str, dict[float, float]]
    slope: float
    mean_gap: dict[float, float]

    def predicted(self, precision: str) -> float:
        return math.sqrt(ROUNDING_UNITS[precision] / self.slope)

    def best(self, precision: str) -> float:
        return min(self.total[precision], key=self.total[precision].get)

    def smallest_usable(self, precision: str) -> float:
        """NaN where none is."""
        usable, total = math.nan, self.total[precision]
        for ratio in sorted((ratio for ratio in total if ratio <= self.best(precision)), reverse=True):
            if total[ratio] >= USABLE:
                break
            usable = ratio
        return usable


def errors(case: Case) -> Errors:
    def exact(draws: Draws) -> Tensor:
        return exact_gradient(case.config(SLOPE_AT), case.network, case.data, case.labels, draws)

    def closer_than_in_training(ratio: float) -> Draws:
        """Also where t − l is below 1e-4."""
        draws = in_float64(case.draws(ratio))
        return replace(draws, l=draws.t - ratio * (draws.t - draws.s))

    limit = exact(closer_than_in_training(LIMIT))
    taylor, mean_gap, total = {}, {}, {precision: {} for precision in ROUNDING_UNITS}
    for ratio in RATIOS:
        draws = case.draws(ratio)
        taylor[ratio] = distance(exact(in_float64(draws)), limit)
        mean_gap[ratio] = (draws.t - draws.l).mean().item()
        for precision in ROUNDING_UNITS:
            found = rounded_gradient(case.config(ratio), SoFlow, precision, case.network, case.data, case.labels, draws)
            total[precision][ratio] = distance(found, limit)
    slope = distance(exact(closer_than_in_training(SLOPE_AT)), limit) / SLOPE_AT
    return Errors(taylor, total, slope, mean_gap)


def table(found: list[Errors]) -> list[str]:
    lines = [
        "| precision | r* predicted | r* measured | error there | smallest usable r | smallest usable t − l, mean |",
        "|---|---|---|---|---|---|",
    ]
    for precision in ROUNDING_UNITS:
        least = [min(each.total[precision].values()) for each in found]
        usable = [each.smallest_usable(precision) for each in found]
        gaps = [each.mean_gap.get(ratio, math.nan) for each, ratio in zip(found, usable, strict=True)]
        cells = (
            spread([each.predicted(precision) for each in found]),
            spread([each.best(precision) for each in found]),
            spread(least),
            *(["none"] * 2 if any(map(math.isnan, usable)) else (spread(usable), spread(gaps))),
        )
        lines.append(f"| {precision} | {' | '.join(cells)} |")
    return lines


def chart(found: list[Errors], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    curves = {"Taylor error alone (float64)": [each.taylor for each in found]}
    curves |= {precision: [each.total[precision] for each in found] for precision in ROUNDING_UNITS}
    for (name, by_seed), color in zip(curves.items(), ("#6b7280", "#2563eb", "#d97706", "#b91c1c"), strict=True):
        values = np.array([[each[ratio] for ratio in RATIOS] for each in by_seed])
        style = "--" if name.startswith("Taylor") else "-"
        axes.plot(RATIOS, np.median(values, axis=0), style, color=color, label=name, linewidth=2)
        axes.fill_between(RATIOS, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
        if name in ROUNDING_UNITS:
            axes.axvline(statistics.median(e.predicted(name) for e in found), color=color, linestyle=":", linewidth=1)
    axes.axhline(USABLE, color="#9ca3af", linewidth=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="r = (t − l) / (t − s)",
        ylabel="relative error of the gradient",
        title="Total error; dotted: where rounding is predicted to take over",
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
    found = []
    for seed in range(options.seeds):
        found.append(errors(trained("euler", seed, options.steps, options.device)))
        print(f"seed {seed}: predicted {[f'{found[-1].predicted(p):.2g}' for p in ROUNDING_UNITS]}", flush=True)
    lines = table(found)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    if options.chart:
        chart(found, options.chart)


if __name__ == "__main__":
    main()
