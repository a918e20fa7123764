"""Plan of an experiment: its training runs, their predicted cost, and a command for a cluster."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.table import Table

from orchestration.config import STORAGE
from orchestration.sweep.checks import check_study
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.search_space import build
from orchestration.sweep.ticket import trial_config
from orchestration.terminal.format import table_console, three_digits
from orchestration.tracking.schema import CASE
from soflow.config import RunConfig, override, parse, to_dict
from soflow.cost.accelerators import ACCELERATORS, Accelerator, measured
from soflow.cost.predict import SLOWDOWN, Prediction, predict

CLUSTER = "H100"


def show_plan(config: SweepConfig, scale: str, arguments: list[str]) -> None:
    """Print the training runs with their predicted cost, and the command for a cluster.

    Args:
        scale: "paper" is predicted for an H100, "small" for this machine.
        arguments: command-line arguments.

    Raises:
        ConfigError: if the configuration is invalid.
    """
    check_study(config, config.storage / (config.name or ""), resuming=True, space=build(config))
    runs = training_runs(config)
    device, accelerator = (CLUSTER, ACCELERATORS[CLUSTER]) if scale == "paper" else ("CPU", this_machine())
    configured, costs = config.resources.num_workers, {}
    for name, (run, _) in runs.items():
        print(f"counting the operations of a step of {name}", file=sys.stderr)
        costs[name] = cost_per_worker(run, configured)
    largest = max(costs, key=lambda name: costs[name].peak_bytes)
    workers, fits = workers_that_fit(runs[largest][0], configured, costs[largest], accelerator)
    if workers > configured:
        costs = {name: cost_per_worker(run, workers) for name, (run, _) in runs.items()}
    unit, seconds = ("hours", 3600) if scale == "paper" else ("minutes", 60)
    table = Table(
        "run", "objective", "network", "data", "steps × batch", "seeds", "step", f"{unit} each", unit, "memory"
    )
    least = most = 0.0
    for name, (run, seeds) in runs.items():
        cost = costs[name]
        step_s = cost.range_s(accelerator)
        durations = [bound * run.training.total_steps * workers / seconds for bound in step_s]
        least, most = (total + seeds * duration for total, duration in zip((least, most), durations, strict=True))
        table.add_row(
            name,
            run.objective.name,
            run.network.name,
            run.dataset.name,
            f"{run.training.total_steps:,} × {run.training.batch_size}",
            str(seeds),
            f"{_range(1e3 * bound for bound in step_s)} ms",
            _range(durations),
            _range(seeds * duration for duration in durations),
            f"{cost.peak_bytes / 2**30:.2f} GiB",
        )
    console = table_console()
    console.print(table)
    num_workers = f"{workers} workers" if workers > 1 else "1 worker"
    memory = f"{accelerator.memory_bytes / 2**30:.0f} GiB of one {device}"
    if not fits:
        parts = "it is taken in smaller parts, with the same gradient"
        console.print(f"A step of {largest} exceeds the {memory} with {num_workers}: {parts}.", highlight=False)
    elif workers > configured:
        console.print(f"A step of {largest} fits into the {memory} with {num_workers} or more.", highlight=False)
    for line in (
        f"{sum(seeds for _, seeds in runs.values())} training runs, {_range((least, most))} {device} {unit} of "
        f"training on {num_workers} each, without evaluation: from every kernel at the peak rate of arithmetic or "
        f"memory to {SLOWDOWN:g} times as long, a little more than the slowest steps measured.",
        "Memory is the peak of all tensors of one worker.",
        f"launch: {cluster_command(config, arguments, workers)}",
    ):
        console.print(line, soft_wrap=True, highlight=False)


def _range(bounds: Iterable[float]) -> str:
    return "–".join(map(three_digits, bounds))


def this_machine() -> Accelerator:
    """Measure the peak rates of this machine's CPU."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return measured(torch.device("cpu"), memory_bytes)


def training_runs(config: SweepConfig) -> dict[str, tuple[RunConfig, int]]:
    """Return every case's run and number of seeds; for a search the base run and the number of trainings."""
    if not config.cases:
        return {
            f"each of {config.num_trials} trials, at most": (config.run, config.num_trials * config.seeds_per_trial)
        }
    seeds = Counter(name for name, _ in config.planned_trials)
    return {name: (trial_config(config.run, {CASE: name}, config.cases), number) for name, number in seeds.items()}


def cost_per_worker(run: RunConfig, workers: int) -> Prediction:
    """Predict the cost of a step for one of `workers`, which share the batch."""
    share = run.training.batch_size // workers
    return predict(parse(override(to_dict(run), {"training.batch_size": share})))


def workers_that_fit(run: RunConfig, workers: int, cost: Prediction, accelerator: Accelerator) -> tuple[int, bool]:
    """Double the number of workers until a step fits into the memory of each, with at least two samples per worker.

    Args:
        cost: predicted cost of a step with `workers` workers.

    Returns:
        Number of workers, and whether a step fits.
    """
    while cost.peak_bytes > accelerator.memory_bytes and run.training.batch_size % (4 * workers) == 0:
        workers *= 2
        cost = cost_per_worker(run, workers)
    return workers, cost.peak_bytes <= accelerator.memory_bytes


def cluster_command(config: SweepConfig, arguments: list[str], workers: int) -> str:
    """Return the command for a Ray cluster, with placeholders for addresses and folders that are not configured."""
    kept = [argument for argument in arguments if argument != "--dry-run"]
    added = []
    if config.address is None:
        added += ["--address", "HEAD:6379"]
    if config.storage == STORAGE.absolute():
        added += ["--storage", "/SHARED/FOLDER"]
    if config.tracking_uri is None:
        added += ["--tracking-uri", "http://MLFLOW:5000"]
    if config.dataset.name in ("latents", "image_folder", "cifar10") and config.dataset.root is None:
        added += ["--dataset.root", "/SHARED/DATA"]
    if workers != config.resources.num_workers:
        added += ["--resources.num-workers", str(workers)]
    if config.resources.gpus_per_worker is None:
        added += ["--resources.gpus-per-worker", "1"]
    return shlex.join(["python", f"experiments/{Path(sys.argv[0]).name}", *kept, *added])
