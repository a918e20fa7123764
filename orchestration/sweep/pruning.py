"""When a trial is stopped: Optuna's pruners on what the study holds, so that a resumed sweep decides as if undisturbed.

What is compared. By default trials meet at equal optimiser steps k. SoFlow's gap ratio r(k, K) depends on the length K
of the whole training, though: at step k < K a trial has not seen its small gaps yet, and schedules differ in when they
show them. If `gap_schedule`, `r_init` or `r_end` is what is searched, an early value may rank trials wrongly. `compare
= equal_progress` gives each rung a complete training instead, with its own K: total_steps / factor², total_steps /
factor, total_steps. Trials are compared at k/K = 1, where all of them have seen every gap of their schedule. No
training is continued to the next rung: a trial that reaches the last one has taken up to 1 / (1 − 1/factor) times its
steps.
"""

from __future__ import annotations

import warnings
from typing import Any

from optuna import pruners
from optuna.exceptions import ExperimentalWarning
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from orchestration.config import SweepConfig
from orchestration.sweep.ray_search import StudySearch
from orchestration.sweep.study import STOPPED_AT


def rungs(config: SweepConfig) -> tuple[int, ...]:
    """Total steps of the complete trainings that a trial goes through, ascending; the last is the configured one.

    One only, unless trials are compared at equal progress. All but the last are multiples of `report_every`.
    """
    stopping, training = config.early_stopping, config.training
    found = [training.total_steps]
    if stopping.compare == "equal_progress" and stopping.kind != "none":
        while True:
            steps = training.total_steps // stopping.reduction_factor ** len(found)
            steps -= steps % training.report_every
            if steps < grace_steps(config):
                break
            found.append(steps)
    return tuple(reversed(found))


def grace_steps(config: SweepConfig) -> int:
    """Steps that every trial takes before it may be stopped."""
    return min(config.early_stopping.grace_reports * config.training.report_every, config.training.total_steps)


def make_pruner(config: SweepConfig) -> pruners.BasePruner:
    """Optuna's pruner for the sweep, on optimiser steps."""
    kind, factor, total = (
        config.early_stopping.kind,
        config.early_stopping.reduction_factor,
        config.training.total_steps,
    )
    several = rungs(config)
    first = several[0] if len(several) > 1 else grace_steps(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if kind == "asha":
            return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
        if kind == "hyperband":
            return pruners.HyperbandPruner(min_resource=first, max_resource=total, reduction_factor=factor)
        if kind == "median":
            return pruners.MedianPruner(n_warmup_steps=first)
        return pruners.NopPruner()


class StudyPruning(FIFOScheduler):
    """Tune's scheduler: reports each result to the study and asks the pruner.

    Values that are no numbers are not reported, so that no trial is compared with them; a trial that diverges fails.
    """

    def __init__(self, search: StudySearch):
        super().__init__()
        self.search, self.study = search, search.study
        self.pruner = make_pruner(self.study.config)
        self.earlier_rungs = rungs(self.study.config)[:-1]
        """Steps at whose first result trials are compared, where there are several rungs; at any result otherwise."""

    def __reduce__(self):
        return StudyPruning, (self.search,)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self.search.hold(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return self.STOP if self.must_stop(trial.config["number"], result) else self.CONTINUE

    def must_stop(self, number: int, result: dict[str, Any]) -> bool:
        """Whether a trial ends with this result. A result that comes again after a restart is answered as before."""
        step, stopped_at = result["step"], self.study.record(number).user_attrs.get(STOPPED_AT)
        if stopped_at is not None:
            return step >= stopped_at
        if self.earlier_rungs and step not in self.earlier_rungs:
            return False
        if not self.study.report(number, step, result):
            return False
        if not self.pruner.prune(self.study.records, self.study.record(number)):
            return False
        self.study.stop(number, step)
        return True
