"""Optuna inside Ray Tune: a searcher without state, because the study contains all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from orchestration.sweep.study import SweepStudy
from orchestration.sweep.ticket import TrialTicket

STATUS, REASON = "status", "reason"
"""Keys of a trial's results: "running", "finished" or "failed", and the reason of a failure."""


class OptunaSearcher(Searcher):
    """Suggests trials from a study and ends each of them in its proper state.

    A trial that reached its last step ends as COMPLETE, one that was stopped early as PRUNED, one that diverged or
    failed as FAIL. (Ray's OptunaSearch ends stopped trials as COMPLETE, so that the sampler compares unlike values.)

    Args:
        replay: numbers of finished trials whose end was not recorded before an interruption; they run once more,
            reading their reports instead of training.
        slots: returns how many trials may run at a time; default: the configured number.
    """

    def __init__(self, study: SweepStudy, replay: Collection[int] = (), slots: Callable[[], int] | None = None):
        super().__init__(metric="fid", mode="min")
        self.study, self.replay = study, replay
        self.slots = slots or (lambda: int(study.config.max_concurrent))
        self.numbers: dict[str, int] = {}
        """Numbers in the study of the trials that Tune has, by Tune's trial id."""
        self.live: set[str] = set()
        """Ids of the trials that have not ended."""
        self._finished_before = sum(t.state.is_finished() and t.number not in replay for t in study.trials())

    def __reduce__(self):
        return object, ()  # Tune saves it for a restore, which soflow never does: a resumed sweep starts from the study

    @property
    def is_complete(self) -> bool:
        """True once Tune has received all trials that there are."""
        return (
            self.study.exhausted or self._finished_before + len(self.numbers) >= self.study.config.resolved_num_trials
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the Tune configuration of a new trial; None while all slots are busy, or if there is none."""
        if len(self.live) >= self.slots():
            return None
        ticket = self.study.next_trial(self.numbers.values(), self.replay)
        if ticket is None:
            return None
        self.numbers[trial_id] = ticket.number
        self.live.add(trial_id)
        return ticket.to_tune()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, result = self.numbers[trial_id], result or {}
        self.live.discard(trial_id)
        if self.study.is_finished(number):  # a replay
            return
        if error or result.get(STATUS) == "failed":
            self.study.fail(number, result.get(REASON) or "the trial's process was lost", result)
        elif result.get(STATUS) == "finished":
            self.study.complete(number, result)
        else:
            self.study.prune(number, result)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: Tune asks the scheduler first, which reports to the study."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: the study has all state."""


class FixedCountGenerator(SearchGenerator):
    """Generates as many trials as the sweep's configuration says, including those of earlier processes."""

    def __reduce__(self):
        return object, ()

    def is_finished(self) -> bool:
        return self.searcher.is_complete


def ticket_of(trial: Trial) -> TrialTicket:
    """Return the ticket of a Tune trial."""
    return TrialTicket.from_tune(trial.config)
