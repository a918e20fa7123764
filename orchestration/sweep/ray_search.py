"""Optuna inside Ray Tune: a searcher without a memory of its own, since the study remembers everything."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from orchestration.sweep.study import SweepStudy

RESULT_STATUS, RESULT_REASON = "status", "reason"
"""Keys of a trial's results: "running", "finished" or "failed", and why."""


def current_point(tune_config: dict[str, Any]) -> dict[str, Any]:
    """The point that a trial is at: where it began, or where its last exchange took it."""
    return tune_config.get("exchange", tune_config)["point"]


class StudySearch(Searcher):
    """Tune's trials out of a study, in which each ends in the state that it deserves and none stays RUNNING.

    A trial that reached its last step is told as COMPLETE, one that was stopped early as PRUNED (Ray's own class says
    COMPLETE, so that the sampler compares unlike values), one that diverged or failed as FAIL.
    """

    def __init__(self, study: SweepStudy):
        super().__init__(metric="fid", mode="min")
        self.study = study
        self.held: dict[str, int] = {}
        """Numbers in the study of the trials that Tune has, by Tune's names."""
        self.live: set[str] = set()
        """Those that have a slot, or will get the next one."""
        self.paused: set[str] = set()

    def __reduce__(self):
        return StudySearch, (self.study,)

    @property
    def is_complete(self) -> bool:
        """Whether Tune has all trials, and none that waits: else it would let the slots go."""
        return len(self.held) >= self.study.config.num_trials and not self.paused

    @property
    def has_room(self) -> bool:
        """Whether there is a slot for another trial."""
        return len(self.live) < self.study.config.max_concurrent

    def hold(self, trial: Trial) -> None:
        """Tune has this trial and lets it run: from its snapshot, just suggested, or after a pause."""
        self.held[trial.trial_id] = trial.config["number"]
        self.paused.discard(trial.trial_id)
        if not trial.is_finished():
            self.live.add(trial.trial_id)

    def pause(self, trial: Trial) -> None:
        """Tune keeps this trial, but has given its slot away."""
        self.live.discard(trial.trial_id)
        self.paused.add(trial.trial_id)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A trial's Tune configuration: its number in the study and its point; None while there is no room."""
        if not self.has_room:
            return None
        suggested = self.study.next_trial(set(self.held.values()))
        if suggested is None:
            return None
        self.held[trial_id] = suggested["number"]
        self.live.add(trial_id)
        return suggested

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.held[trial_id]
        self.live.discard(trial_id)
        if self.study.is_over(number):  # told before a restart; the study is ahead of Tune's snapshot
            return
        result = result or {}
        if error or result.get(RESULT_STATUS) == "failed":
            self.study.fail(number, result.get(RESULT_REASON) or "the trial's process was lost")
        elif result.get(RESULT_STATUS) == "finished":
            self.study.complete(number, result)
        else:
            self.study.prune(number)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tune asks the scheduler first, which reports to the study."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to save."""

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        """Tune's scheduler is told of the restored trials and passes them to `hold`."""


class StudyTrials(SearchGenerator):
    """As many trials as the sweep's configuration says, whatever Tune counted before an abrupt end or an extension."""

    def __reduce__(self):
        return StudyTrials, (self.searcher,)

    def is_finished(self) -> bool:
        return self.searcher.is_complete
