"""Compare SoFlow's step eager, compiled and with one network call per quantity (benchmarks/two_pass.py).

Prints ratios of steps measured in turn, round after round: medians over rounds with intervals; and the share of the
machine's peak that a step reaches. Then mixed precision on digits, and SoFlow against flow matching, beside the ratio
of counted operations.

$ python benchmarks/step_speed.py --threads 1
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics

import torch
from two_pass import TwoPassSoFlow

from soflow.config import RunConfig, parse
from soflow.cost.measure import count_step, time_steps
from soflow.cost.synthetic import synthetic_source
from soflow.cost.utilization import Utilization
from soflow.objectives.soflow import SoFlow
from soflow.precision import Precision
from soflow.statistics import median_coverage, median_interval
from soflow.training.trainer import Trainer

CPU = torch.device("cpu")
SIZES = {"DiT-XXS/4": 128, "DiT-XS/2": 64, "DiT-S/2": 16}
"""Samples per step by network."""


def run_config(network: str, batch: int, objective: dict, compiled: bool = False, precision: str = "fp32") -> RunConfig:
    training = {"batch_size": batch, "compile": compiled, "precision": precision, "total_steps": 10**6}
    return parse({"objective": objective, "network": {"name": network}, "training": training})


def trainer(config: RunConfig, kind: type[SoFlow] | None = None) -> Trainer:
    """Build a trainer, optionally with another implementation of its objective, and warm it up."""
    result = Trainer(config, synthetic_source(config.dataset), CPU)
    if kind:
        precisions = Precision(config.training.precision), Precision(config.training.quotient_precision)
        result.objective = result.module.objective = kind(config.objective, 10, True, *precisions)
    result.advance(6)
    return result


def measure(sides: dict[str, Trainer], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the median milliseconds of a step by side and round; the sides take turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(statistics.median(step["step"] for step in time_steps(side, steps)))
    return times


def show(title: str, slow: list[float], fast: list[float]) -> None:
    """Print the ratio of two sides' times."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    low, high = median_interval(ratios)
    ms = f"{statistics.median(slow):.3g} / {statistics.median(fast):.3g} ms"
    print(f"{title}: {statistics.median(ratios):.2f} ({low:.2f}–{high:.2f}), {ms}", flush=True)


def compare_implementations(network: str, batch: int, rounds: int, steps: int) -> None:
    """Compare eager and compiled steps of one and of two passes, and print shares of the peak."""
    kinds = {"ours": None, "two passes": TwoPassSoFlow}
    sides = {
        f"{name}, {'compiled' if compiled else 'eager'}": trainer(
            run_config(network, batch, {"name": "soflow"}, compiled), kind
        )
        for compiled in (False, True)
        for name, kind in kinds.items()
    }
    times = measure(sides, rounds, steps)
    for slow, fast in (
        ("ours, eager", "ours, compiled"),
        ("two passes, eager", "ours, eager"),
        ("two passes, compiled", "ours, compiled"),
        ("two passes, eager", "ours, compiled"),
    ):
        show(f"{network}, batch {batch}: {slow} / {fast}", times[slow], times[fast])
    for name in ("ours, eager", "ours, compiled"):
        utilization = Utilization(sides[name].config, CPU, world_size=1)
        share = utilization.metrics(2, statistics.median(times[name]))["throughput/peak_share"]
        print(f"{network}, batch {batch}: {name}: {100 * share:.0f} % of the measured peak", flush=True)


def compare_precisions(rounds: int, steps: int) -> None:
    """Compare bf16, except in the finite difference, with fp32."""
    network, batch = "DiT-XXS/4", SIZES["DiT-XXS/4"]
    sides = {
        precision: trainer(run_config(network, batch, {"name": "soflow"}, precision=precision))
        for precision in ("fp32", "bf16")
    }
    times = measure(sides, rounds, steps)
    show(f"{network}, batch {batch}: fp32 / bf16 except the finite difference", times["fp32"], times["bf16"])


def compare_objectives(network: str, batch: int, rounds: int, steps: int) -> None:
    """Compare guided SoFlow with flow matching, by time and by counted operations."""
    published = {"flow_matching_fraction": 0.75, "guidance_strength": 2.5, "velocity_mix": 0.25}
    sides = {
        "SoFlow guided": trainer(run_config(network, batch, {"name": "soflow", **published})),
        "flow matching": trainer(run_config(network, batch, {"name": "flow_matching", "guidance_strength": 1})),
    }
    times = measure(sides, rounds, steps)
    show(f"{network}, batch {batch}: SoFlow guided / flow matching", times["SoFlow guided"], times["flow matching"])
    flops = [sum(count_step(side).flops.values()) for side in sides.values()]
    print(f"  by counted operations: {flops[0] / flops[1]:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8, help="per side and round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}; "
        f"intervals cover the median with {100 * median_coverage(options.rounds):.1f} %"
    )
    for network, batch in SIZES.items():
        compare_implementations(network, batch, options.rounds, options.steps)
    compare_precisions(options.rounds, options.steps)
    for network, batch in (("DiT-XS/2", 64), ("DiT-XS/1", 32)):
        compare_objectives(network, batch, options.rounds, options.steps)


if __name__ == "__main__":
    main()
