"""The Optuna study of a sweep: its trials, their reports, and how they ended.

All state that search and early stopping need is in the study's storage, and is written to it before Ray Tune acts on
it. So nothing is lost with a process: a resumed sweep starts from the storage alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from orchestration.storage import STUDY_FILE
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig, read_constraint
from orchestration.sweep.points import key_of, untried, valid_points
from orchestration.sweep.samplers import SAMPLERS, make_sampler
from orchestration.sweep.search_space import SearchSpace
from orchestration.sweep.study_storage import open_storage, repair_journal, study_name
from orchestration.sweep.ticket import TrialTicket, fault_of

REASON, STOPPED_AT, LAST_RESULT, REJECTED = "reason", "stopped_at_step", "last_result", "rejected"
"""Attributes of trials: why a trial failed, at which step it was stopped, its last step and metrics, and why a point
was rejected: such a trial never runs and is no trial of the sweep."""
PATIENCE = 10
"""Points of the sampler to reject in a row before a valid one is chosen at random."""


def accepted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials whose points were not rejected. Their numbers have gaps where points were."""
    return [trial for trial in trials if REJECTED not in trial.user_attrs]


class SweepStudy:
    """The study of a sweep, shared by search and early stopping.

    Args:
        config: the sweep, with `num_trials` resolved.
        folder: folder of the sweep.
        space: its search space.
        on_rejected: called with a trial's number and the reason when its point is rejected and drawn again.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: Path,
        space: SearchSpace,
        on_rejected: Callable[[int, str], None] = lambda number, reason: None,
    ):
        self.config, self.folder, self.space, self.on_rejected = config, folder, space, on_rejected
        self.finite = None if config.cases else valid_points(config, space)
        self.exhausted = False
        """True if no valid point is left to try."""
        self._left: list[int] | None = None
        """Trials of an interrupted process that this one has not started yet; None before the first is asked for."""
        self._waiting: list[int] = []
        """Numbers of the points that wait to be tried."""
        self._num_started = self._total = 0
        self.constraints = [read_constraint(constraint) for constraint in config.constraints]
        if config.study_storage is None:
            repair_journal(folder / STUDY_FILE)
        self.storage, name = open_storage(config.study_storage, folder), study_name(config, folder)
        self.study = self._open(name, goals=len(config.goals))
        # Optuna takes no reports in a study with several goals. They go to a second study of the first goal.
        self.reports = self._open(f"{name}-stopping", goals=1) if len(config.goals) > 1 else self.study
        done = len(self.trials())
        for point in search_space.known_points(config, self.space, done)[: max(0, config.resolved_num_trials - done)]:
            self.study.enqueue_trial(point)

    def _open(self, name: str, goals: int) -> optuna.Study:
        study = optuna.create_study(
            storage=self.storage,
            study_name=name,
            directions=["minimize"] * goals,
            sampler=make_sampler(self.config, 0),
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if study.metric_names is None:  # for optuna-dashboard
                study.set_metric_names(list(self.config.goals[:goals]))
        return study

    def trials(self) -> list[FrozenTrial]:
        """Return all trials in the order of their numbers, including those that wait to be suggested."""
        return accepted(self.study.get_trials(deepcopy=False))

    def rejected(self) -> list[FrozenTrial]:
        """Return the trials whose points were rejected."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if REJECTED in trial.user_attrs]

    def next_trial(self, started: Collection[int], replay: Collection[int] = ()) -> TrialTicket | None:
        """Return the next trial to run; None if there is none.

        Trials that an interrupted process left unfinished come first, with the points that they had. An invalid point
        is drawn again, and so is one that was tried before in a finite space.

        Args:
            started: numbers of the trials that this process has started.
            replay: numbers of finished trials to run once more; they read their reports instead of training.
        """
        if self._left is None:
            self._count(replay)
        while self._left:
            number = self._left.pop(0)
            if number not in started:
                if self._suggest(number):
                    return self.ticket(number)
                self._num_started -= 1
        rejections = 0
        while self._num_started < self.config.resolved_num_trials:
            if rejections >= PATIENCE or (rejections and self.finite is not None and not self._waiting):
                tried = (key_of(self.space.point(trial.params)) for trial in self.trials())
                params = untried(self.config, self.space, self.finite, tried, self._total)
                if params is None:
                    self.exhausted = True
                    return None
                self.study.enqueue_trial(params)
                self._waiting.append(self._total)
                self._total += 1
            number = self._ask()
            if self._suggest(number):
                self._num_started += 1
                return self.ticket(number)
            rejections += 1
        return None

    def _count(self, replay: Collection[int]) -> None:
        """Count the trials of the study once: this process alone adds others."""
        trials = self.study.get_trials(deepcopy=False)
        self._total = len(trials)
        self._waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        begun = [trial for trial in accepted(trials) if trial.state != TrialState.WAITING]
        self._num_started = len(begun)
        self._left = [t.number for t in begun if t.state == TrialState.RUNNING or t.number in replay]

    def _ask(self) -> int:
        """Start the trial that waits first, or a new one; return its number."""
        number = self._waiting.pop(0) if self._waiting else None
        self.study.sampler = make_sampler(self.config, self._total if number is None else number)
        if number is not None:
            return self.study.ask().number
        # As `ask` does, which looks through all trials for one that waits.
        self.storage.create_new_trial(self.storage.get_study_id_from_name(self.study.study_name))
        self._total += 1
        return self._total - 1

    def _suggest(self, number: int) -> bool:
        """Choose the values of a trial's point that are not chosen yet; return False if it is unusable."""
        if self.is_finished(number):  # to be replayed
            return True
        self.study.sampler = make_sampler(self.config, number)
        self.space(self._handle(self.study, number))
        if self.reports is not self.study:
            while len(self.reports.get_trials(deepcopy=False)) <= number:
                self.reports.ask()
        if reason := self._unusable(number):
            self._reject(number, reason)
        return not reason

    def _unusable(self, number: int) -> str:
        """Return why a trial's point must be drawn again; "" if it is usable."""
        point = self.ticket(number).point
        if (fault := fault_of(self.config.run, point, self.config.cases)) or self.finite is None:
            return fault
        chosen = "fixed_params" in self._frozen(self.study, number).system_attrs  # by the user, or as untried
        same = (trial.number for trial in self.trials() if self.space.point(trial.params) == point)
        first = next((other for other in same if other < number), None)
        return "" if chosen or first is None else f"trial {first} has this point"

    def _reject(self, number: int, reason: str) -> None:
        """Tell Optuna that a point violates a constraint, if the sampler takes constraints."""
        trial = self._handle(self.study, number)
        trial.set_user_attr(REJECTED, reason)
        if SAMPLERS[self.config.sampler].constraints:
            trial.set_constraint(REJECTED, 1.0)
        self._tell(number, state=TrialState.PRUNED)
        self.on_rejected(number, reason)

    def ticket(self, number: int) -> TrialTicket:
        return TrialTicket(number, self.space.point(self._frozen(self.study, number).params))

    def is_finished(self, number: int) -> bool:
        """Check whether a trial has ended, in any state."""
        return self._frozen(self.study, number).state.is_finished()

    def report(self, number: int, step: int, result: dict[str, Any]) -> bool:
        """Record the first goal's value at a step.

        Returns:
            True if the value is new; False if the step was recorded before or the value is not finite.
        """
        value, trial = value_of(result, self.config.goals[0]), self.reported(number)
        if not math.isfinite(value) or trial.state.is_finished() or step in trial.intermediate_values:
            return False
        self._handle(self.reports, number).report(value, step)
        return True

    def reported(self, number: int) -> FrozenTrial:
        """Return a trial with its reported values."""
        return self._frozen(self.reports, number)

    def stop(self, number: int, step: int) -> None:
        """Record the decision to stop a trial at a step, before Tune acts on it."""
        self._handle(self.reports, number).set_user_attr(STOPPED_AT, step)

    def complete(self, number: int, result: dict[str, Any]) -> None:
        """End a trial that reached its last step; it fails if a goal or constraint has no finite value."""
        if reason := reason_unusable(self.config, result):
            self.fail(number, reason, result)
            return
        self.report(number, result["step"], result)
        trial = self._handle(self.study, number)
        for text, constraint in zip(self.config.constraints, self.constraints, strict=True):
            trial.set_constraint(text, value_of(result, constraint.metric) - constraint.limit)
        self._save_result(number, result)
        self._tell(number, [value_of(result, goal) for goal in self.config.goals])

    def prune(self, number: int, result: dict[str, Any]) -> None:
        """End a trial that was stopped early."""
        self._save_result(number, result)
        self._tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str, result: dict[str, Any] | None = None) -> None:
        """End a trial that failed, with the reason."""
        self._handle(self.study, number).set_user_attr(REASON, reason)
        self._save_result(number, result or {})
        self._tell(number, state=TrialState.FAIL)

    def _save_result(self, number: int, result: dict[str, Any]) -> None:
        """Save a trial's last step and metrics, from which the ranking is made."""
        last = {"step": result.get("step", 0), "metrics": metrics_of(result)}
        self._handle(self.study, number).set_user_attr(LAST_RESULT, last)

    def _tell(self, number: int, values: list[float] | None = None, state: TrialState | None = None) -> None:
        if self.reports is not self.study:
            self.reports.tell(number, values and values[0], state=state, skip_if_finished=True)
        self.study.tell(number, values, state=state)

    def _handle(self, study: optuna.Study, number: int) -> optuna.Trial:
        return optuna.Trial(study, self._id(study, number))

    def _frozen(self, study: optuna.Study, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._id(study, number))

    def _id(self, study: optuna.Study, number: int) -> int:
        study_id = self.storage.get_study_id_from_name(study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)


METRICS = "metrics/"
"""Prefix of metrics in a result that Tune has flattened for searchers and schedulers."""


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a trial's result, flattened by Tune or not."""
    if isinstance(result.get("metrics"), dict):
        return dict(result["metrics"])
    return {name.removeprefix(METRICS): value for name, value in result.items() if name.startswith(METRICS)}


def reason_unusable(config: SweepConfig, result: dict[str, Any]) -> str:
    """Name the goals and constraints of which the last result has no finite value; empty if it has all."""
    names = (*config.goals, *(read_constraint(text).metric for text in config.constraints))
    missing = [name for name in dict.fromkeys(names) if not math.isfinite(value_of(result, name))]
    return f"not reported or not finite: {', '.join(missing)}" if missing else ""


def value_of(result: dict[str, Any], metric: str) -> float:
    """Return a metric of a trial's result; NaN if it has none."""
    return float(metrics_of(result).get(metric, math.nan))
