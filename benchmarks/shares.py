"""How does SoFlow's advantage over MeanFlow depend on the share of samples with r ≠ t?

Measures compiled steps in turn, round after round: SoFlow's, MeanFlow's with a Jacobian-vector product for the samples
with r ≠ t (c), and with a finite difference (d). Prints a table of SoFlow's time over MeanFlow's, medians over rounds
with intervals, beside the ratio of counted operations, and draws it.

$ python benchmarks/shares.py --chart docs/cost_shares.png
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from pathlib import Path

import torch

from orchestration.cost_study.config import VARIANTS
from soflow.config import RunConfig, parse
from soflow.cost.measure import time_steps
from soflow.cost.predict import predict
from soflow.cost.synthetic import synthetic_source
from soflow.statistics import median_coverage, median_interval
from soflow.training.trainer import Trainer

CPU = torch.device("cpu")
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of the batch with r ≠ t, SoFlow's s ≠ t."""
OPPONENTS = {"meanflow_c": "Jacobian–vector product", "meanflow_d": "finite difference"}
COLORS = {"meanflow_c": "#2563eb", "meanflow_d": "#d97706"}


def run_config(variant: str, share: float, network: str, batch: int, compiled: bool) -> RunConfig:
    return parse(
        {
            "objective": VARIANTS[variant] | {"flow_matching_fraction": 1 - share},
            "network": {"name": network},
            "training": {"batch_size": batch, "compile": compiled, "total_steps": 10**6},
        }
    )


def measured(configs: dict[str, RunConfig], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the median milliseconds of a step by variant and round; the variants take turns."""
    sides = {name: Trainer(config, synthetic_source(config.dataset), CPU) for name, config in configs.items()}
    for side in sides.values():
        time_steps(side, 6)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(statistics.median(step["step"] for step in time_steps(side, steps)))
    return times


def compare(share: float, options: argparse.Namespace) -> dict[str, tuple[float, float, float, float]]:
    """Print and return, for each opponent, the measured ratio, its interval, and the ratio of counted operations."""
    configs = {
        name: run_config(name, share, options.network, options.batch, compiled=True) for name in ("soflow", *OPPONENTS)
    }
    times, flops = (
        measured(configs, options.rounds, options.steps),
        {
            name: predict(run_config(name, share, options.network, options.batch, compiled=False)).flops
            for name in configs
        },
    )
    found = {}
    for name in OPPONENTS:
        ratios = [soflow / other for soflow, other in zip(times["soflow"], times[name], strict=True)]
        found[name] = statistics.median(ratios), *median_interval(ratios), flops["soflow"] / flops[name]
    cells = [f"{ratio:.2f} ({low:.2f}–{high:.2f}) | {counted:.2f}" for ratio, low, high, counted in found.values()]
    print(f"| {share:g} | {' | '.join(cells)} |", flush=True)
    return found


def chart(found: dict[float, dict[str, tuple[float, float, float, float]]], title: str, path: Path) -> None:
    """Draw the ratios against the share, measured with intervals and counted."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for name, label in OPPONENTS.items():
        values = [found[share][name] for share in found]
        ratios, lows, highs, counted = zip(*values, strict=True)
        errors = [
            [ratio - low for ratio, low in zip(ratios, lows, strict=True)],
            [high - ratio for ratio, high in zip(ratios, highs, strict=True)],
        ]
        axes.errorbar(
            list(found), ratios, yerr=errors, fmt="o-", capsize=3, color=COLORS[name], label=f"{label}, measured"
        )
        axes.plot(list(found), counted, "--", color=COLORS[name], label=f"{label}, counted operations")
    axes.axhline(1, color="#9ca3af", linewidth=1)
    axes.set(
        xlabel="share of samples with r ≠ t", ylabel="time of SoFlow's step / MeanFlow's", title=title, ylim=(0, None)
    )
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="DiT-XS/2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=5, help="per variant and round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--chart", type=Path, help="PNG file to draw the ratios to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    print(
        f"{options.network}, batch {options.batch}, compiled, {machine}; intervals cover the median with "
        f"{100 * median_coverage(options.rounds):.1f} %"
    )
    headings = [f"SoFlow / MeanFlow by {label} | counted" for label in OPPONENTS.values()]
    print(f"| share with r ≠ t | {' | '.join(headings)} |\n|{'---|' * 5}")
    found = {share: compare(share, options) for share in SHARES}
    if options.chart:
        chart(found, f"{options.network}, batch {options.batch}, both compiled", options.chart)


if __name__ == "__main__":
    main()
