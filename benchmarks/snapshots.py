"""What do snapshots of averaged weights cost, and how exact are the averages that are made from them?

Trains digits twice, with and without snapshots, a stretch of steps in turn: medians over rounds of the ratio of their
wall-clock seconds, writing of files included, with an interval. Beside the run with snapshots, the averages themselves
are kept at every step: relative error of all weights (L2) for each length, of snapshots and of fewer of them.

    PYTHONPATH=. python benchmarks/snapshots.py --network DiT-XS/2
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from soflow.config import RunConfig, parse
from soflow.data import open_source
from soflow.posthoc_ema import Average, ema_decay, exponent, power_decay
from soflow.statistics import median_coverage, median_interval
from soflow.training import snapshots
from soflow.training.ema import MovingAverage
from soflow.training.trainer import Trainer

AVERAGES = [*map(Average, (0.05, 0.07, 0.1, 0.15, 0.2, 0.25)), Average(decay=0.99), Average(decay=0.999)]
WARMUP_STEPS = 20


def run_config(network: str, batch: int, steps: int, every: int | None) -> RunConfig:
    training = {"total_steps": steps, "report_every": steps, "batch_size": batch, "snapshot_every": every}
    return parse({"network": {"name": network}, "training": training})


def start(config: RunConfig, directory: Path) -> tuple[Trainer, partial]:
    """Return a trainer and the function that advances it by some steps and writes its snapshots."""
    trainer = Trainer(config, open_source(config.dataset), torch.device("cpu"))

    def save() -> None:
        snapshots.save(trainer.power_averages, directory, trainer.step, config.training)

    return trainer, partial(trainer.advance, save_snapshot=save)


def compare_times(options: argparse.Namespace, folder: Path) -> None:
    steps = WARMUP_STEPS + options.rounds * options.stretch
    sides = {}
    for name, every in (("without", None), ("with", options.stretch)):
        sides[name] = start(run_config(options.network, options.batch, steps, every), folder / name)[1]
        sides[name](WARMUP_STEPS)
    ratios = []
    for _ in range(options.rounds):
        seconds = {}
        for name, advance in sides.items():
            began = time.perf_counter()
            advance(options.stretch)
            seconds[name] = time.perf_counter() - began
        ratios.append(seconds["with"] / seconds["without"])
    low, high = median_interval(ratios)
    size = max(path.stat().st_size for path in (folder / "with" / snapshots.FOLDER).iterdir())
    print(
        f"{options.network}, batch {options.batch}, a snapshot every {options.stretch} steps: time with / without "
        f"snapshots {statistics.median(ratios):.3f} ({low:.3f}–{high:.3f}); {size / 2**20:.2f} MiB a snapshot",
        flush=True,
    )


def compare_weights(options: argparse.Namespace, folder: Path) -> None:
    config = run_config(options.network, options.batch, options.steps, options.steps // 32)
    trainer, advance = start(config, folder / "weights")
    kept = {
        average: MovingAverage(
            trainer.network,
            partial(power_decay, gamma=exponent(average.length))
            if average.length
            else partial(ema_decay, decay=average.decay or 0.0),
        )
        for average in AVERAGES
    }
    for _ in range(options.steps):
        advance(1)
        for average in kept.values():
            average.update_parameters(trainer.network)
    for stride in (1, 2, 4):
        part = folder / f"part-{stride}"
        for number, path in enumerate(sorted((folder / "weights" / snapshots.FOLDER).iterdir()), start=1):
            if number % stride == 0:
                (part / snapshots.FOLDER).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, part / snapshots.FOLDER)
        found = snapshots.Snapshots(part, config, options.steps)
        for average, true in kept.items():
            profile = found.reconstruction(average).error
            shown = f"{options.steps} steps, {32 // stride} snapshots, average {average}: profile {100 * profile:.3g} %"
            if profile <= snapshots.MOST_ERROR:
                weights, expected = found.weights(average), dict(true.module.named_parameters())
                off = sum(float((weights[name] - value).square().sum()) for name, value in expected.items())
                size = sum(float(value.square().sum()) for value in expected.values())
                shown += f", weights {100 * (off / size) ** 0.5:.3g} %"
            print(shown, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="DiT-XXS/2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--stretch", type=int, default=50, help="steps per side and round, with one snapshot")
    parser.add_argument("--steps", type=int, default=1600, help="of the run whose averages are compared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}; "
        f"intervals cover the median with {100 * median_coverage(options.rounds):.1f} %"
    )
    with tempfile.TemporaryDirectory() as folder:
        compare_times(options, Path(folder))
        compare_weights(options, Path(folder))


if __name__ == "__main__":
    main()
