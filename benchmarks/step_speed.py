"""Our SoFlow step against one network call per quantity (benchmarks/two_pass.py), and against the counted arithmetic.

Prints ratios measured side by side, in turn, round after round: medians over rounds with the range of the middle half.

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
    """A warmed-up trainer, with another implementation of its objective if one is given."""
    made = Trainer(config, synthetic_source(config.dataset), CPU)
    if kind:
        calls = Precision(config.training.precision), Precision(config.training.quotient_precision)
        made.objective = made.module.objective = kind(config.objective, 10, True, *calls)
    made.advance(6)
    return made


def compare(name: str, ours: Trainer, other: Trainer, rounds: int, steps: int) -> None:
    """Print how many times as long the other's step takes as ours."""
    ratios, own = [], []
    for _ in range(rounds):
        times = [statistics.median(step["step"] for step in time_steps(made, steps)) for made in (ours, other)]
        ratios.append(times[1] / times[0])
        own.append(times[0])
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"{name}: {statistics.median(ratios):.2f} ({low:.2f}–{high:.2f}), ours {statistics.median(own):.2f} ms")


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
        "two passes in fp32 / ours in bf16 but for the quotient, digits",
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
        print(f"  by counted arithmetic: {counted:.3f}")


if __name__ == "__main__":
    main()
