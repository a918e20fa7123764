"""How do a sweep's study and its summary grow with the number of recorded trials?

For each size a study is filled with finished trials of the default search (reports at 4 to 8 steps, 40 % stopped, some
failed), as a sweep would have left it. Measured, each in seconds:

- suggest: the next trial, median of several asked one after another;
- resume: a new process's view of the study: opening it, reading the states of all trials;
- stop: one report and the decision whether to stop;
- table: the final ranking of all trials.

    python benchmarks/many_trials.py --sizes 100 1000 10000 --samplers tpe nsga2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
import pandas as pd
from ray.tune.experiment import Trial

from orchestration.storage import SWEEP_FILE
from orchestration.sweep.config import SamplerName, SweepConfig
from orchestration.sweep.pruning import StudyPruning
from orchestration.sweep.ranking import ranking
from orchestration.sweep.samplers import make_sampler
from orchestration.storage import STUDY_FILE
from orchestration.sweep.study import SweepStudy, open_storage, trial_states
from soflow.config_files import to_yaml

STEPS = range(200, 1601, 200)


def fill(config: SweepConfig, folder: Path, size: int) -> None:
    """A study with `size` trials over, drawn at random and recorded as a sweep records them."""
    study, draw = SweepStudy(config.model_copy(update={"sampler": "random"}), folder), random.Random(0)
    synchronise, os.fsync = os.fsync, lambda file: None  # what is only measured need not survive a power cut
    for number in range(size):
        study.study.sampler = make_sampler(study.config, number)
        study.space(study.study.ask())
        stopped = draw.random() < 0.4
        for step in STEPS[:4] if stopped else STEPS[:-1]:
            study.report(number, step, {"fid": 1000 / step + draw.random(), "step": step})
        if stopped:
            study.stop(number, STEPS[3])
            study.prune(number)
        elif draw.random() < 0.1:
            study.fail(number, "diverged")
        else:
            study.complete(number, {"fid": 0.6 + draw.random(), "step": STEPS[-1]})
    os.fsync = synchronise


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def tune_trials(study: SweepStudy) -> list[Trial]:
    """The trials as Tune would hold them."""
    found = []
    for record in study.trials():
        if not record.state.is_finished():
            continue
        trial = Trial("slot", stub=True, config={"number": record.number, "point": study.space.point(record.params)})
        trial.run_metadata.last_result = {"fid": record.value, "step": record.last_step, "metrics": {}}
        found.append(trial)
    return found


def measure(sampler: str, size: int, repeats: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = SweepConfig(num_trials=size + repeats, sampler=sampler, known_points=())
        (folder / SWEEP_FILE).write_text(to_yaml(config))
        fill(config, folder, size)
        found: dict[str, float] = {"journal MiB": (folder / STUDY_FILE).stat().st_size / 2**20}
        opened: list[SweepStudy] = []
        open_storage.cache_clear()  # as a new process finds it
        found["resume"] = seconds(lambda: opened.append(SweepStudy.of(folder)))
        found["resume"] += seconds(lambda: trial_states(config, folder))
        study = opened[0]
        held = set(range(size))
        times, stops = [], []
        for number in range(size, size + repeats):
            times.append(seconds(lambda: study.next_trial(held)))
            held.add(number)
            result = {"fid": 2.0, "step": 800, "status": "running"}
            scheduler = StudyPruning(OptunaSearcher(study))
            stops.append(seconds(partial(scheduler.must_stop, number, result)))
            study.prune(number)
        found["suggest"], found["stop"] = statistics.median(times), statistics.median(stops)
        trials = tune_trials(study)
        found["table"] = seconds(lambda: ranking(config, folder, trials))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--samplers", nargs="+", choices=SamplerName.__args__, default=["tpe"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = []
    for sampler in arguments.samplers:
        for size in arguments.sizes:
            rows.append({"sampler": sampler, "trials": size, **measure(sampler, size, arguments.repeats)})
            print(json.dumps(rows[-1]), flush=True)
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
