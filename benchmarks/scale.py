"""What does a trial cost that does nothing? Runs many of them through Optuna, Ray Tune, Ray Train and MLflow.

The workers answer at once, with a report but without training; all else is a real sweep. Prints, for each block of
trials, the slot time per trial and how long the driver spends in Optuna's suggestions, in writing the study, in records
and in the table, its CPU time and its memory; then the records that MLflow has.

    python benchmarks/scale.py --trials 10000 --blocks 10 --sampler random
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator

from orchestration.sweep import callback, study, trial_actor
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.run import run_sweep
from orchestration.workers.messages import Answer, Request
from soflow.training.reports import Report


class IdleWorker:
    """Server that reports without training."""

    def __init__(self, cache: str, device, rank: int, world_size: int):
        pass

    def serve(self, request: Request) -> Answer:
        steps = request.config.training.total_steps
        metrics = {"fid": request.config.objective.velocity_mix, "time/step_ms": 0.0, "time/train_s": 0.0}
        return Answer(steps, Report(steps, metrics, {"device": "none"}, {}, finished=True))

    def close(self) -> None:
        pass

    def failure(self, request: Request, error: Exception) -> Answer:
        return Answer(request.start, failure=str(error))


class IdleTrial(trial_actor.TrialActor):
    """Trial whose workers do nothing."""

    def setup(self, config, **settings) -> None:
        from orchestration.workers import training

        training.TrainingWorker = IdleWorker
        super().setup(config, **settings)


class Stopwatch:
    """Seconds that the driver has spent in parts of itself, and readings after each block of trials."""

    def __init__(self, block: int, slots: int):
        self.block, self.slots, self.seconds = block, slots, Counter[str]()
        self.readings: list[dict[str, float]] = []

    def watch(self, owner: type, method: str, part: str) -> None:
        """Count the time of a method."""
        original: Callable = getattr(owner, method)

        @functools.wraps(original)
        def timed(*arguments, **options):
            began = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds[part] += time.perf_counter() - began

        setattr(owner, method, timed)

    def trial_ended(self, count: int) -> None:
        if count % self.block == 0 or count == 1:
            used = resource.getrusage(resource.RUSAGE_SELF)
            now = {"trials": count, "wall": time.perf_counter(), "cpu": used.ru_utime + used.ru_stime}
            self.readings.append(now | {"rss": used.ru_maxrss / 2**20} | dict(self.seconds))
            for line in table(self.readings[-2:], self.slots):
                print(line, file=sys.stderr, flush=True)


PARTS = {
    "suggestion": [(study.SweepStudy, "next_trial")],
    "study": [(study.SweepStudy, "complete"), (study.SweepStudy, "report")],
    "records": [(callback.MlflowCallback, f"on_trial_{event}") for event in ("start", "result", "complete")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--sampler", default="random")
    options = parser.parse_args()
    watch = Stopwatch(options.trials // options.blocks, options.slots)
    for part, methods in PARTS.items():
        for owner, method in methods:
            watch.watch(owner, method, part)
    trial_actor.TrialActor = IdleTrial
    end, ended = callback.MlflowCallback._end, Counter[str]()

    def count(self, *arguments) -> None:
        end(self, *arguments)
        ended["trials"] += 1
        watch.trial_ended(ended["trials"])

    callback.MlflowCallback._end = count
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        config = SweepConfig.model_validate(
            {
                "name": "sweep",
                "storage": folder,
                "num_trials": options.trials,
                "max_concurrent": options.slots,
                "sampler": options.sampler,
                "early_stopping": {"kind": "none"},
                "progress": "plain",
            }
        )
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.slots} slots")
        run_sweep(config, lambda folder, attach: None)
        delivered(f"sqlite:///{folder}/mlflow.db", options.trials)


def table(readings: list[dict[str, float]], slots: int) -> Iterator[str]:
    """Yield a table's row per block, with what a trial of it cost; before the first, the table's head."""
    names = list(PARTS)
    if len(readings) == 1:
        yield f"| trials | slot time, s | driver CPU, s | {', s | '.join(names)}, s | memory, GiB |"
        yield "|---|---|---|" + "---|" * (len(names) + 1)
    for before, after in itertools.pairwise(readings):
        trials = after["trials"] - before["trials"]
        per_trial = {name: (after.get(name, 0) - before.get(name, 0)) / trials for name in ("wall", "cpu", *names)}
        parts = " | ".join(f"{per_trial[name]:.4f}" for name in names)
        span = f"{before['trials']:g}–{after['trials']:g}"
        yield f"| {span} | {slots * per_trial['wall']:.3f} | {per_trial['cpu']:.3f} | {parts} | {after['rss']:.2f} |"


def delivered(uri: str, trials: int) -> None:
    """Print how many runs MLflow has, and how many are finished."""
    from mlflow import MlflowClient

    client, states, token = MlflowClient(uri), Counter[str](), None
    experiment = client.get_experiment_by_name("soflow")
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        states.update(run.info.status for run in page)
        if not (token := page.token):
            break
    print(f"\nMLflow: {dict(states)} of {trials + 1} runs")


if __name__ == "__main__":
    main()
