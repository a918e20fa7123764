"""Ranking of trials: by state, constraints, steps, goals and number."""

import math

import pandas as pd

from orchestration.sweep.rank import rank_trials


def test_trials_are_sorted_by_state_constraints_steps_goals_and_number():
    rows = [
        (0, "failed", True, 100, 0.1, 1.0),
        (1, "finished", False, 300, 0.2, 1.0),
        (2, "finished", True, 300, 0.5, 2.0),
        (3, "finished", True, 300, 0.5, 1.0),
        (4, "stopped", True, 100, 0.3, 1.0),
        (5, "stopped", True, 200, 0.9, 1.0),
        (6, "finished", True, 300, math.nan, 1.0),
        (8, "finished", True, 300, 0.5, 2.0),
        (10, "finished", True, 900, 0.6, 1.0),
        (7, "unknown", True, 300, 0.0, 0.0),
        (9, "running", True, 0, math.nan, math.nan),
    ]
    table = pd.DataFrame(rows, columns=["trial", "state", "feasible", "step", "fid", "time"])
    ranked = rank_trials(table.sample(frac=1, random_state=0), ["fid", "time"])
    assert ranked["trial"].tolist() == [3, 2, 8, 10, 6, 1, 5, 4, 9, 0, 7]  # of finished ones, steps do not count
    assert list(ranked) == list(table)
