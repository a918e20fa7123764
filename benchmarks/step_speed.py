"""Compare the SoFlow step with one network call per quantity (benchmarks/two_pass.py), and with the counted operations.

Prints ratios of steps measured in turn, round after round: medians over rounds with the interquartile range.

$ python benchmarks/step_speed.py
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
from soflow.objectives.soflow import SoFlow
from soflow.precision import Precision
from soflow.training.trainer import Trainer

CPU = torch.device("cpu")


def trainer(config: RunConfig, kind: type[SoFlow] | None = None) -> Trainer:
    """Build a trainer, optionally with another implementation of its objective, and warm it up."""
    result = Trainer(config, synthetic_source(config.dataset), CPU)
    if kind:
        precisions = Precision(config.training.precision), Precision(config.training.quotient_precision)
        result.objective = result.module.objective = kind(config.objective, 10, True, *precisions)
    result.advance(6)
    return result


def compare(name: str, ours: Trainer, other: Trainer, rounds: int, steps: int) -> None:
    """Print the ratio of the other's step time to ours."""
    ratios, ours_ms = [], []
    for _ in range(rounds):
        times = [statistics.median(step["step"] for step in time_steps(side, steps)) for side in (ours, other)]
        ratios.append(times[1] / times[0])
        ours_ms.append(times[0])
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"{name}: {statistics.median(ratios):.2f} ({low:.2f}–{high:.2f}), ours {statistics.median(ours_ms):.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8, help="per side and round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}")

    digits = {"objective": {"name": "soflow"}}
    plain = parse(digits)
    compare(
        "two passes / ours, digits, fp32", trainer(plain), trainer(plain, TwoPassSoFlow), options.rounds, options.steps
    )
    mixed = parse(digits | {"training": {"precision": "bf16"}})
    compare(
        "two passes in fp32 / ours in bf16 except the finite difference, digits",
        trainer(mixed),
        trainer(plain, TwoPassSoFlow),
        options.rounds,
        options.steps,
    )
    for network, batch in (("DiT-XS/2", 64), ("DiT-XS/1", 32)):
        shape = {"network": {"name": network}, "training": {"batch_size": batch}}
        published = {"flow_matching_fraction": 0.75, "guidance_strength": 2.5, "velocity_mix": 0.25}
        guided = trainer(parse(shape | {"objective": {"name": "soflow", **published}}))
        flow = trainer(parse(shape | {"objective": {"name": "flow_matching", "guidance_strength": 1}}))
        counted = sum(count_step(guided).flops.values()) / sum(count_step(flow).flops.values())
        compare(f"SoFlow guided / flow matching, {network}, batch {batch}", flow, guided, options.rounds, options.steps)
        print(f"  by counted operations: {counted:.3f}")


if __name__ == "__main__":
    main()
