"""How long does a slot of a sweep wait between two trials, with warm worker groups or with a TorchTrainer per trial?

Both designs train the same tiny digits trials, one at a time, in one run on one machine:

- nested: the way of Ray's documentation, a Tune function trainable that builds a TorchTrainer with TuneReportCallback;
- warm: this project's, a Tune class trainable that keeps the workers of one TorchTrainer from trial to trial.

Both run with this project's Ray settings (no preemption watcher, health checks every 0.5 s).

Measured: seconds from a trial's last report on its worker to the next trial's first optimizer step.

    python benchmarks/warm_workers.py --trials 6

With --slots, only this project's design, over many trials of two steps: the same seconds, and the resident memory of
its processes at the start of the tenth and of the last trial.

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
    """Thread that logs the resident memory of this program's Ray processes, in MiB by title, at each trial's start."""

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
        sizes_of = defaultdict(list)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                pages = int((process / "statm").read_text().split()[1])
                same_session = os.getsid(int(process.name)) == os.getsid(0)
            except OSError:  # the process has ended
                continue
            title = next((title for title in self.TITLES if command.startswith(title)), None)
            title = "this program" if int(process.name) == os.getpid() else title
            if same_session and title:
                sizes_of[title].append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return {title: sorted(sizes) for title, sizes in sizes_of.items()}

    def rows(self) -> list[str]:
        """Return table rows for the tenth and the last trial."""
        counts = sorted(self.at)
        tenth_and_last = [next((n for n in counts if n >= 10), counts[-1]), counts[-1]]
        return [
            f"| {number} | {title} | {', '.join(f'{size:.0f}' for size in sizes)} |"
            for number in tenth_and_last
            for title, sizes in sorted(self.at[number].items())
        ]


def warm_gaps(config: SweepConfig) -> list[float]:
    """Run a sweep and return the seconds between trials, as measured by the workers."""
    from mlflow import MlflowClient

    run_sweep(config, lambda folder, attach: None)
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
        gaps = warm_gaps(config)[slots - 1 :]  # without each slot's first trial, which waits for its group
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| design | median s between trials | min | max | gaps |\n|---|---|---|---|---|")
    print(row(f"{slots} slots of {workers} workers", gaps))
    print("\n| trials started | process | resident MiB |\n|---|---|---|")
    print("\n".join(memory.rows()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6, help="trials of each design, at least 2 (default 6)")
    parser.add_argument("--slots", type=int, help="measure this project's design and its memory in this many slots")
    parser.add_argument("--workers", type=int, default=1, help="workers per slot (default 1)")
    parser.add_argument("--address", help="address of a Ray cluster, with --slots (default: start one)")
    options = parser.parse_args()
    if options.slots:
        return measure_many(options.trials, options.slots, options.workers, options.address)
    with tempfile.TemporaryDirectory() as folder:
        config = tiny(Path(folder), options.trials)
        warm = warm_gaps(config)
        nested = nested_gaps(config, Path(folder) / "nested")
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| design | median s between trials | min | max | gaps |\n|---|---|---|---|---|")
    print(row("warm worker group", warm))
    print(row("TorchTrainer per trial", nested))
    print(f"\nratio of medians: {statistics.median(nested) / statistics.median(warm):.0f}")


if __name__ == "__main__":
    main()
