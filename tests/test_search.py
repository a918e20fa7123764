"""The study behind a sweep: every trial ends in the state that it deserves, also over a restart."""

from __future__ import annotations

import math
import pickle

import pytest
from optuna.trial import TrialState

from orchestration import search_space
from orchestration.config import SweepConfig
from orchestration.search import StudySearch, trial_states


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "study.journal"


def new_search(journal, seed: int = 0) -> StudySearch:
    return StudySearch(search_space.build(SweepConfig()), metric="fid", seed=seed, journal=journal)


def result(status: str, fid: float, step: int = 10, reason: str = "") -> dict:
    return {"fid": fid, "step": step, "status": status, "reason": reason}


def test_each_end_has_its_state(journal):
    search = new_search(journal)
    for trial in "abcd":
        search.suggest(trial)
    search.on_trial_result("a", result("running", 3.0, 5))
    search.on_trial_complete("a", result("finished", 2.0))
    search.on_trial_result("b", result("running", 4.0, 5))
    search.on_trial_complete("b", result("running", 4.0, 5))  # stopped by the scheduler
    search.on_trial_result("c", result("failed", math.nan, 0, "diverged"))
    search.on_trial_complete("c", result("failed", math.nan, 0, "diverged"))
    search.on_trial_complete("d", error=True)
    assert trial_states(journal) == {
        0: TrialState.COMPLETE,
        1: TrialState.PRUNED,
        2: TrialState.FAIL,
        3: TrialState.FAIL,
    }
    trials = search._ot_study.get_trials()
    assert trials[0].value == 2.0
    assert trials[0].intermediate_values == {5: 3.0}
    assert trials[1].intermediate_values == {5: 4.0}
    assert trials[2].user_attrs["reason"] == "diverged"


def test_a_finished_trial_with_nan_is_not_complete(journal):
    search = new_search(journal)
    search.suggest("a")
    search.on_trial_complete("a", result("finished", math.nan))
    assert trial_states(journal) == {0: TrialState.PRUNED}


def test_the_first_trial_is_the_base_configuration(journal):
    search = new_search(journal)
    first = search.suggest("a")
    objective = SweepConfig().objective
    assert first["number"] == 0
    assert first["point"] == {
        f"objective.{name}": getattr(objective, name)
        for name in ("flow_matching_fraction", "gap_schedule", "r_init", "r_end", "guidance_strength", "velocity_mix")
    }


def test_one_seed_gives_one_sequence(tmp_path):
    def points(seed: int, name: str) -> list[dict]:
        search = new_search(tmp_path / name, seed)
        found = []
        for i in range(14):  # beyond the ten random trials, where the sampler learns from results
            found.append(search.suggest(str(i)))
            search.on_trial_complete(str(i), result("finished", found[-1]["point"]["objective.r_end"]))
        return found

    assert points(3, "one") == points(3, "same")
    assert points(3, "again") != points(4, "other")


def test_a_restart_goes_on_and_closes_what_tune_forgot(journal, tmp_path):
    search = new_search(journal)
    as_tune_keeps_it = pickle.dumps(search)
    kept = search.suggest("kept")
    search.suggest("told")
    search.save(str(tmp_path / "snapshot"))
    search.on_trial_complete("told", result("finished", 1.0))  # after the snapshot: Tune will tell it again
    search.suggest("forgotten")  # likewise, and Tune does not know of it

    restored = pickle.loads(as_tune_keeps_it)
    restored.restore(str(tmp_path / "snapshot"))
    assert trial_states(journal) == {0: TrialState.RUNNING, 1: TrialState.COMPLETE, 2: TrialState.FAIL}
    restored.on_trial_result("told", result("finished", 1.0))
    restored.on_trial_complete("told", result("finished", 1.0))
    restored.on_trial_complete("kept", result("finished", 2.0))
    assert kept["number"] == 0
    assert set(trial_states(journal).values()) == {TrialState.COMPLETE, TrialState.FAIL}
    assert restored.suggest("next")["number"] == 3
