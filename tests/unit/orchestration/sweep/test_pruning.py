"""Early stopping: which trials are stopped on curves made by hand, and that a restart changes no decision or record."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.sweep.config import SweepConfig
from orchestration.sweep.pruning import StudyPruning
from orchestration.sweep.ray_search import OptunaSearcher
from orchestration.sweep.rungs import rungs
from tests.unit.orchestration.sweep.test_search_space import new_study, reopened, result

STEPS = range(100, 801, 100)
TRAINING = {"total_steps": 800, "report_every": 100}
SLOPES = (4.0, 2.0, 6.0, 1.0, 5.0, 3.0, 0.5, 7.0)
"""Trial by trial, the lower the better at every step."""


def curve(number: int) -> dict[int, float]:
    return {step: SLOPES[number % len(SLOPES)] * 1000 / step for step in STEPS}


class Sweep:
    """A sweep's search and scheduler without Tune and training; trials run in turns of one report."""

    def __init__(self, folder: Path, **stopping):
        self.study = new_study(folder, training=TRAINING, early_stopping=stopping, sampler="random")
        self.reopen()

    def reopen(self) -> None:
        """As a new process would."""
        self.study = reopened(self.study)
        self.scheduler = StudyPruning(OptunaSearcher(self.study))

    def begin(self, number: int) -> None:
        assert self.study.next_trial(set(range(number))).number == number

    def report(self, number: int, step: int, value: float) -> bool:
        """True if the trial goes on."""
        if step == STEPS[-1]:
            self.study.complete(number, result("finished", value, step))
            return False
        if self.scheduler.must_stop(number, result("running", value, step)):
            self.study.prune(number, result("running", value, step))
            return False
        return True

    def run(self, number: int) -> int:
        """A whole trial; its last step."""
        self.begin(number)
        for step, value in curve(number).items():
            if not self.report(number, step, value):
                return step
        raise AssertionError("a trial has an end")

    def records(self) -> list[dict]:
        return [
            {"values": trial.intermediate_values, "state": trial.state.name, **trial.user_attrs, **trial.system_attrs}
            for trial in self.study.trials()
        ]


def test_successive_halving_stops_what_is_not_in_the_better_half(tmp_path):
    sweep = Sweep(tmp_path, kind="asha", grace_reports=2)
    # Rungs at 200 and 400. A trial goes on if it is among the best half, rounded down, of those that were there.
    assert [sweep.run(number) for number in range(8)] == [800, 800, 200, 800, 200, 400, 800, 200]


def test_another_reduction_factor(tmp_path):
    sweep = Sweep(tmp_path, kind="asha", grace_reports=1, reduction_factor=4)
    # Rungs at 100 and 400: of the second to seventh trial only a new best one goes on.
    assert [sweep.run(number) for number in range(8)] == [800, 800, 100, 800, 100, 100, 800, 100]


def test_the_median_rule_waits_for_five_trials(tmp_path):
    sweep = Sweep(tmp_path, kind="median", grace_reports=3)
    # Slopes 4, 2, 6, 1, 5 run to their ends: median 4. Then 3 and 0.5 go on, 7 is stopped.
    assert [sweep.run(number) for number in range(8)] == [800] * 7 + [300]


def test_hyperband_has_brackets_of_different_patience(tmp_path):
    sweep = Sweep(tmp_path, kind="hyperband", grace_reports=2)
    ends = [sweep.run(number) for number in range(16)]
    # Brackets begin at 200, 400 and 800 steps, so bad trials end at 200 or 400 or not at all, and the best never.
    assert set(ends) == {200, 400, 800}
    assert [ends[number] for number in (6, 14)] == [800, 800]


def test_no_early_stopping(tmp_path):
    sweep = Sweep(tmp_path, kind="none")
    assert [sweep.run(number) for number in range(8)] == [800] * 8
    assert sweep.records()[0]["values"] == curve(0)


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_trial_without_numbers_is_compared_with_none(tmp_path, kind):
    with_nan, without = (Sweep(tmp_path / name, kind=kind, grace_reports=2) for name in ("with", "without"))
    with_nan.begin(0)
    for step in (100, 200, 300):
        assert with_nan.report(0, step, math.nan)
    with_nan.study.fail(0, "diverged")
    assert with_nan.study.reported(0).intermediate_values == {}
    ends = [without.run(number) for number in range(7)]
    for number, end in enumerate(ends):
        with_nan.begin(number + 1)
        assert next(s for s, value in curve(number).items() if not with_nan.report(number + 1, s, value)) == end


@pytest.mark.parametrize("kind", ["asha", "hyperband", "median"])
def test_a_restart_changes_no_record_and_no_decision(tmp_path, kind):
    """Four trials at a time in a random order, against the same with restarts between reports."""

    def play(sweep: Sweep, restarts: bool) -> list[tuple]:
        order, running, decisions = random.Random(0), {}, []
        for number in range(10):
            sweep.begin(number)
            running[number] = list(curve(number).items())
            while running and (len(running) == 4 or number == 9):
                chosen = order.choice(sorted(running))
                step, value = running[chosen].pop(0)
                goes_on = sweep.report(chosen, step, value)
                decisions.append((chosen, step, goes_on))
                if not goes_on:
                    del running[chosen]
                if order.random() < 0.3 and restarts:
                    before = sweep.records()
                    sweep.reopen()
                    assert sweep.records() == before
        return decisions

    undisturbed, disturbed = (Sweep(tmp_path / name, kind=kind, grace_reports=2) for name in ("one", "other"))
    assert play(undisturbed, restarts=False) == play(disturbed, restarts=True)
    assert undisturbed.records() == disturbed.records()
    assert {record["state"] for record in undisturbed.records()} == {"COMPLETE", "PRUNED"}


def test_a_result_that_comes_again_is_answered_as_before(tmp_path):
    """A trial that resumes from an older checkpoint repeats results that the study has."""
    sweep = Sweep(tmp_path, kind="asha", grace_reports=2)
    sweep.begin(0)
    sweep.begin(1)
    for number, step, stops in ((0, 100, False), (0, 200, False), (1, 100, False), (1, 200, False)):
        assert sweep.scheduler.must_stop(number, result("running", curve(number)[step], step)) == stops
    sweep.begin(2)
    assert not sweep.scheduler.must_stop(2, result("running", curve(2)[100], 100))
    assert sweep.scheduler.must_stop(2, result("running", curve(2)[200], 200))
    before = sweep.records()
    sweep.reopen()  # killed before Tune stopped it
    assert not sweep.scheduler.must_stop(2, result("running", curve(2)[100], 100))
    assert sweep.scheduler.must_stop(2, result("running", curve(2)[200], 200))
    assert sweep.scheduler.must_stop(2, result("running", curve(2)[300], 300))  # or went on from a later checkpoint
    assert not sweep.scheduler.must_stop(0, result("running", 1e9, 200))
    assert sweep.records() == before


def test_another_process_sees_the_same_rungs(tmp_path):
    sweep = Sweep(tmp_path, kind="asha", grace_reports=2)
    for number in range(4):
        sweep.run(number)
    script = (
        "import sys, pathlib\n"
        "from orchestration.sweep.resume import saved_config\n"
        "from orchestration.sweep.study_storage import load_study\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "print([trial.system_attrs for trial in load_study(saved_config(folder), folder).trials])"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == str([trial.system_attrs for trial in sweep.study.trials()]), ran.stderr
    assert "completed_rung_1" in ran.stdout


def config(**stopping) -> SweepConfig:
    training = stopping.pop("training", TRAINING)
    return SweepConfig.model_validate({"training": training, "early_stopping": stopping})


def test_rungs_of_equal_progress_are_whole_trainings_of_growing_length():
    equal = {"compare": "equal_progress"}
    assert rungs(config()) == rungs(config(**equal, kind="none")) == (800,)
    assert rungs(config(**equal, grace_reports=1)) == (100, 200, 400, 800)
    assert rungs(config(**equal, grace_reports=3)) == (400, 800)
    assert rungs(config(**equal, grace_reports=8)) == (800,)
    assert rungs(config(**equal, grace_reports=1, reduction_factor=3)) == (200, 800)
    odd = {"total_steps": 1050, "report_every": 100}
    assert rungs(config(**equal, grace_reports=1, training=odd)) == (100, 200, 500, 1050)


def test_trials_are_compared_once_at_the_end_of_each_rung(tmp_path):
    """For every length the pruner's rungs are those of the trainings: a worse second trial ends at the first."""
    for total in range(400, 1700, 190):
        training = {"total_steps": total, "report_every": 50}
        values = {"compare": "equal_progress", "grace_reports": 1, "kind": "asha"}
        study = new_study(tmp_path / str(total), training=training, early_stopping=values, max_concurrent=2)
        scheduler = StudyPruning(OptunaSearcher(study))
        study.next_trial(set())
        steps = rungs(study.config)
        for step in steps[:-1]:
            assert not scheduler.must_stop(0, result("running", 1.0, step))
        for step in range(50, total, 50):  # the last rung's own reports, at part of its progress
            assert not scheduler.must_stop(0, result("running", 1e9, step))
        assert study.reported(0).intermediate_values == dict.fromkeys(steps[:-1], 1.0)
        passed = [name for name in study.reported(0).system_attrs if name.startswith("completed_rung")]
        assert len(passed) == len(steps) - 1
        study.next_trial({0})
        assert scheduler.must_stop(1, result("running", 2.0, steps[0]))
