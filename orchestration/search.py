"""Optuna inside Ray Tune, with every trial ending in the state that it deserves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from orchestration.search_space import SearchSpace

STUDY = "sweep"
RESULT_STATUS, RESULT_REASON = "status", "reason"
"""Keys of a trial's results: "running", "finished" or "failed", and why."""


class StudySearch(OptunaSearch):
    """OptunaSearch with a persistent study in which no trial stays RUNNING.

    A trial that reached its last step is told as COMPLETE, one that was stopped early as PRUNED (Ray's own class says
    COMPLETE, so that the sampler compares unlike values), one that diverged or failed as FAIL.
    """

    def __init__(self, space: SearchSpace, metric: str, seed: int, journal: Path):
        super().__init__(
            space=space,
            metric=metric,
            mode="min",
            points_to_evaluate=[space.base_point],
            sampler=optuna.samplers.TPESampler(seed=seed),
            study_name=STUDY,
            storage=open_journal(journal),
        )

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """A trial's Tune configuration: its point in the space and its number in the study."""
        point = super().suggest(trial_id)
        return {"number": self._ot_trials[trial_id].number, "point": point}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        value = result[self.metric]
        if trial_id not in self._completed_trials and math.isfinite(value) and not self._is_over(trial_id):
            self._ot_trials[trial_id].report(value, result["step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id in self._completed_trials:
            return
        self._completed_trials.add(trial_id)
        if self._is_over(trial_id):  # told before a restart; the journal is ahead of Tune's snapshot
            return
        trial = self._ot_trials[trial_id]
        value = (result or {}).get(self.metric, math.nan)
        if error or (result or {}).get(RESULT_STATUS) == "failed":
            reason = (result or {}).get(RESULT_REASON, "the trial's process failed")
            trial.set_user_attr("reason", reason)
            self._ot_study.tell(trial, state=TrialState.FAIL)
        elif result and result[RESULT_STATUS] == "finished" and math.isfinite(value):
            self._ot_study.tell(trial, value)
        else:
            self._ot_study.tell(trial, state=TrialState.PRUNED)

    def restore(self, checkpoint_path: str) -> None:
        """Go on from Tune's snapshot; trials that were suggested after it are unknown to Tune and end as FAIL."""
        super().restore(checkpoint_path)
        known = {trial.number for trial in self._ot_trials.values()}
        for trial in self._ot_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in known:
                self._ot_study.tell(trial.number, state=TrialState.FAIL)

    def _is_over(self, trial_id: str) -> bool:
        number = self._ot_trials[trial_id].number
        return self._ot_study.get_trials(deepcopy=False)[number].state.is_finished()


def open_journal(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def trial_states(journal: Path) -> dict[int, TrialState]:
    """States of a sweep's trials by number: what is over and what is not, whatever Tune made of an interruption."""
    study = optuna.load_study(study_name=STUDY, storage=open_journal(journal))
    return {trial.number: trial.state for trial in study.get_trials(deepcopy=False)}
