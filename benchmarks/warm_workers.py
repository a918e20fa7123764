"""How long does a slot of a sweep wait between two trials? Warm worker groups against a TorchTrainer per trial.

Both designs train the same tiny digits trials, one at a time, side by side in one run on one machine:

- nested: Ray's documented way, a Tune function trainable that builds a TorchTrainer with a TuneReportCallback;
- warm: this project's, a Tune class trainable that keeps one TorchTrainer's workers from trial to trial.

Both run with this project's Ray settings (no preemption watcher, health checks every 0.5 s).

Measured: seconds from a trial's last report on its worker to the moment before the next trial's first optimiser step.

    python benchmarks/warm_workers.py --trials 6

With --slots, this project's design alone, over many trials of two steps: the same seconds, and the resident memory of
its processes when the tenth and the last trial had started.

    python benchmarks/warm_workers.py --trials 300 --slots 2 --workers 1
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

from orchestration.cluster import connected
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.run import run_sweep
from orchestration.sweep.ticket import trial_config
from soflow.config import to_dict


def tiny(folder: Path, trials: int) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "warm",
            "storage": folder,
            "num_trials": trials,
            "max_concurrent": 1,
            "early_stopping": {"kind": "none"},
            "training": {"total_steps": 10, "report_every": 5, "batch_size": 32},
            "evaluation": {"num_samples": 64},
        }
    )


def many(folder: Path, trials: int, slots: int, workers: int, address: str | None) -> SweepConfig:
    small = {"total_steps": 2, "report_every": 2, "batch_size": 32}
    values = {"max_concurrent": slots, "training": small, "resources": {"num_workers": workers}, "address": address}
    return SweepConfig.model_validate(to_dict(tiny(folder, trials)) | values)


class MemoryLog(threading.Thread):
    """Resident memory of this program's Ray processes, MiB by title, each time that another trial has started."""

    TITLES = ("ray::RayTrainWorker", "ray::ResourceTrainable", "ray::TrainController", "ray::Mailbox")

    def __init__(self, sweep: Path):
        super().__init__(daemon=True)
        self.sweep = sweep
        self.at: dict[int, dict[str, list[float]]] = {}

    def run(self) -> None:
        while True:
            started = len(list(self.sweep.glob("trials/[0-9]*")))
            self.at.setdefault(started, self.resident())
            time.sleep(0.2)

    def resident(self) -> dict[str, list[float]]:
        found = defaultdict(list)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                pages = int((process / "statm").read_text().split()[1])
                ours = os.getsid(int(process.name)) == os.getsid(0)
            except OSError:  # it ended meanwhile
                continue
            title = next((title for title in self.TITLES if command.startswith(title)), None)
            title = "this program" if int(process.name) == os.getpid() else title
            if ours and title:
                found[title].append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return {title: sorted(sizes) for title, sizes in found.items()}

    def rows(self) -> list[str]:
        """Of the tenth trial and of the last that all processes have seen."""
        counts = sorted(self.at)
        chosen = [next((n for n in counts if n >= 10), counts[-1]), counts[-1]]
        return [
            f"| {number} | {title} | {', '.join(f'{size:.0f}' for size in sizes)} |"
            for number in chosen
            for title, sizes in sorted(self.at[number].items())
        ]


def warm_gaps(config: SweepConfig) -> list[float]:
    """Seconds, from what the workers measured themselves."""
    from mlflow import MlflowClient

    run_sweep(config)
    client = MlflowClient(config.resolved_tracking_uri)
    experiment = client.get_experiment_by_name("soflow")
    runs = client.search_runs([experiment.experiment_id], "tags.`soflow.kind` = 'trial'", max_results=10_000)
    runs.sort(key=lambda run: int(run.data.tags["optuna_number"]))
    return [run.data.metrics["time/handover_s"] for run in runs[1:]]  # the first trial waits for the group's start


def nested_worker(loop_config: dict) -> None:
    import ray.train
    import torch

    from soflow.config import parse
    from soflow.data import open_source
    from soflow.evaluation.fidelity import Evaluator
    from soflow.training.run import TrainingRun

    torch.set_num_threads(1)
    config, device, folder = parse(loop_config["config"]), torch.device("cpu"), Path(loop_config["folder"])
    source = open_source(config.dataset)
    run = TrainingRun(config, source, folder, device, Evaluator(source, config, device, folder.parent / "reference"))
    started = time.time()
    while not run.finished:
        report = run.advance()
        ray.train.report({"fid": report.metrics["fid"], "started": started, "reported": time.time()})


def nested_trial(tune_config: dict) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    trial = tune_config["trial"]
    TorchTrainer(
        nested_worker,
        train_loop_config=trial,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=Path(trial["folder"]).name, storage_path=trial["storage"], callbacks=[TuneReportCallback()]
        ),
    ).fit()


def nested_gaps(config: SweepConfig, folder: Path) -> list[float]:
    from ray import tune

    base = to_dict(trial_config(config.run, {}))
    trials = [
        {"config": base, "folder": str(folder / f"run-{i}"), "storage": str(folder / "train")}
        for i in range(config.num_trials)
    ]
    with connected(config, groups=1):
        results = tune.Tuner(
            tune.with_resources(nested_trial, {"CPU": 0, "memory": 1}),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(name="nested", storage_path=str(folder / "tune"), verbose=0),
        ).fit()
        ends = sorted((result.metrics["started"], result.metrics["reported"]) for result in results)
    return [start - end for (_, end), (start, _) in itertools.pairwise(ends)]


def row(name: str, gaps: list[float]) -> str:
    return f"| {name} | {statistics.median(gaps):.2f} | {min(gaps):.2f} | {max(gaps):.2f} | {len(gaps)} |"


def measure_many(trials: int, slots: int, workers: int, address: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = many(Path(folder), trials, slots, workers, address)
        memory = MemoryLog(Path(folder) / config.name)
        memory.start()
        gaps = warm_gaps(config)[slots - 1 :]  # each slot's first trial waits for its group's start
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| design | median s between trials | min | max | gaps |\n|---|---|---|---|---|")
    print(row(f"{slots} slots of {workers} workers", gaps))
    print("\n| trials started | process | resident MiB |\n|---|---|---|")
    print("\n".join(memory.rows()))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, default=6, help="trials of each design, at least 2 (default 6)")
    options.add_argument("--slots", type=int, help="measure many trials in so many slots, and memory")
    options.add_argument("--workers", type=int, default=1, help="workers per slot (default 1)")
    options.add_argument("--address", help="of a Ray cluster, with --slots; by default one is started")
    chosen = options.parse_args()
    trials = chosen.trials
    if chosen.slots:
        return measure_many(trials, chosen.slots, chosen.workers, chosen.address)
    with tempfile.TemporaryDirectory() as folder:
        config = tiny(Path(folder), trials)
        warm = warm_gaps(config)
        nested = nested_gaps(config, Path(folder) / "nested")
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| design | median s between trials | min | max | gaps |\n|---|---|---|---|---|")
    print(row("warm worker group", warm))
    print(row("TorchTrainer per trial", nested))
    print(f"\nratio of medians: {statistics.median(nested) / statistics.median(warm):.0f}")


if __name__ == "__main__":
    main()
