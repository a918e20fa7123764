"""Early stopping: Optuna's pruners on the values in the study, so that a resumed sweep makes the same decisions.

By default trials are compared at equal optimizer steps k. But SoFlow's gap ratio r(k, K) depends on the length K of the
whole training: at step k < K a trial has not reached its small gaps yet, and schedules differ in when they reach them.
If `gap_schedule`, `r_init` or `r_end` is searched, an early value may rank trials wrongly. `compare = equal_progress`
gives each rung a complete training with its own K: total_steps / factor², total_steps / factor, total_steps. Trials are
then compared at k/K = 1, after the whole schedule. No training continues into the next rung, so a trial that reaches
the last rung has taken up to 1 / (1 − 1/factor) times its steps.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import optuna
from optuna import pruners
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from orchestration.sweep.config import SweepConfig
from orchestration.sweep.ray_search import OptunaSearcher
from orchestration.sweep.rungs import grace_steps, rungs
from orchestration.sweep.study import STOPPED_AT


def make_pruner(config: SweepConfig) -> pruners.BasePruner:
    """Make Optuna's pruner for the sweep, on optimizer steps."""
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
            return _Hyperband(min_resource=first, max_resource=total, reduction_factor=factor)
        if kind == "median":
            return pruners.MedianPruner(n_warmup_steps=first)
        return pruners.NopPruner()


class _Hyperband(pruners.HyperbandPruner):
    """Hyperband whose brackets depend on a trial's number only.

    Optuna's also depend on the study's name, so that equal sweeps of different names would stop different trials.
    """

    def _get_bracket_id(self, study: optuna.Study, trial: FrozenTrial) -> int:
        named: Any = SimpleNamespace(study_name="sweep")
        return super()._get_bracket_id(named, trial)


class StudyPruning(FIFOScheduler):
    """Tune scheduler that reports each result to the study and asks the pruner.

    Values that are not finite are not reported, so that no trial is compared with them; a trial that diverges fails.
    """

    def __init__(self, searcher: OptunaSearcher):
        super().__init__()
        self.study = searcher.study
        self.pruner = make_pruner(self.study.config)
        self.earlier_rungs = rungs(self.study.config)[:-1]
        """Steps at whose first result trials are compared, where there are several rungs; at any result otherwise."""

    def __reduce__(self):
        return object, ()  # as OptunaSearcher

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the first trial that waits; among those that have not ended, where Tune's own looks through all."""
        waiting = (trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING)
        return min(waiting, key=lambda trial: trial.config["number"], default=None)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return self.STOP if self.must_stop(trial.config["number"], result) else self.CONTINUE

    def must_stop(self, number: int, result: dict[str, Any]) -> bool:
        """Decide whether a trial ends with this result; a repeated result gets the same decision as before."""
        step, stopped_at = result["step"], self.study.reported(number).user_attrs.get(STOPPED_AT)
        if stopped_at is not None:
            return step >= stopped_at
        if self.earlier_rungs and step not in self.earlier_rungs:
            return False
        if not self.study.report(number, step, result):
            return False
        if not self.pruner.prune(self.study.reports, self.study.reported(number)):
            return False
        self.study.stop(number, step)
        return True
