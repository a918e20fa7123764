"""What a study would train, what that costs at least, and how to launch it on a cluster; nothing is trained."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestration import search_space
from orchestration.config import SweepConfig, read_case
from orchestration.search_space import CASE, trial_config
from orchestration.study import check_study
from soflow.config import RunConfig, override, parse, to_dict
from soflow.cost.accelerators import ACCELERATORS
from soflow.cost.prediction import Prediction, predict

ACCELERATOR = "H100"


def show_plan(config: SweepConfig, arguments: list[str]) -> None:
    """Print the training runs with their predicted cost on one kind of accelerator, and the command for a cluster.

    Args:
        arguments: of the command line, as they were given.

    Raises:
        ConfigError: if the configuration is impossible.
    """
    check_study(config, config.storage / (config.name or ""), resuming=True)
    runs = training_runs(config)
    workers = config.resources.num_workers
    table = Table(
        "run", "objective", "network", "data", "steps × batch", "seeds", "step", "hours each", "hours", "memory"
    )
    total = 0.0
    for name, (run, seeds) in runs.items():
        print(f"counting a step of {name}", file=sys.stderr)
        cost = of_one_worker(run, workers)
        step_s = cost.roofline_s(ACCELERATORS[ACCELERATOR], run.training.precision)
        hours = step_s * run.training.total_steps * workers / 3600
        total += hours * seeds
        table.add_row(
            name,
            run.objective.name,
            run.network.name,
            run.dataset.name,
            f"{run.training.total_steps:,} × {run.training.batch_size}",
            str(seeds),
            f"{step_s * 1e3:.3g} ms",
            f"{hours:.3g}",
            f"{hours * seeds:.3g}",
            f"{cost.peak_bytes / 2**30:.2f} GiB",
        )
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(table)
    for line in (
        f"{sum(seeds for _, seeds in runs.values())} training runs, at least {total:.3g} {ACCELERATOR} hours of "
        f"training on {workers} worker{'s' if workers > 1 else ''} each, with every kernel at the peak of its "
        "arithmetic or of memory; evaluation comes on top.",
        "Memory is the peak of all tensors of one worker.",
        f"launch: {cluster_command(config, arguments)}",
    ):
        console.print(line, soft_wrap=True, highlight=False)


def training_runs(config: SweepConfig) -> dict[str, tuple[RunConfig, int]]:
    """Every case with its number of seeds; of a search its base, as often as there are trials."""
    if not config.cases:
        return {
            f"each of {config.num_trials} trials, at most": (config.run, config.num_trials * config.seeds_per_trial)
        }
    search_space.build(config)
    names = [read_case(case)[0] for case in config.cases]
    return {name: (trial_config(config.run, {CASE: name}, config.cases), config.case_seeds) for name in names}


def of_one_worker(run: RunConfig, workers: int) -> Prediction:
    """The cost of a step for one of `workers`, which share the batch."""
    share = run.training.batch_size // workers
    return predict(parse(override(to_dict(run), {"training.batch_size": share})))


def cluster_command(config: SweepConfig, arguments: list[str]) -> str:
    """The same study on a Ray cluster, with placeholders for what only its owner knows."""
    kept = [argument for argument in arguments if argument != "--dry-run"]
    own = []
    if config.address is None:
        own += ["--address", "HEAD:6379"]
    if "--storage" not in kept:
        own += ["--storage", "/SHARED/FOLDER"]
    if config.tracking_uri is None:
        own += ["--tracking-uri", "http://MLFLOW:5000"]
    if config.dataset.name in ("latents", "image_folder", "cifar10") and config.dataset.root is None:
        own += ["--dataset.root", "/SHARED/DATA"]
    if config.resources.gpus_per_worker is None:
        own += ["--resources.gpus-per-worker", "1"]
    return " ".join(["python", f"experiments/{Path(sys.argv[0]).name}", *kept, *own])
