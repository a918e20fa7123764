"""Ranking of a sweep's trials, for trials.csv and for reports."""

from __future__ import annotations

import pandas as pd

STATES = ("finished", "stopped", "running", "interrupted", "failed")
"""States of a trial in the order of the ranking; unknown states come last."""


def rank_trials(table: pd.DataFrame, goals: list[str]) -> pd.DataFrame:
    """Sort trials from best to worst.

    Trials are sorted by state, then those that satisfy all constraints before the others, then, unless they have
    finished, by the number of steps (most first), by the goals in their order (lowest first, NaN last) and by number.

    Args:
        table: columns `trial`, `state`, `feasible`, `step` and the goals.
    """
    table = table.reset_index(drop=True)
    position = {state: index for index, state in enumerate(STATES)}
    keys = pd.DataFrame(
        {
            "state": table["state"].map(position).fillna(len(STATES)),
            "infeasible": ~table["feasible"].astype(bool),
            "steps": -table["step"].where(table["state"] != "finished", 0),
            **{f"goal {index}": table[goal] for index, goal in enumerate(goals)},
            "trial": table["trial"],
        }
    )
    return table.loc[keys.sort_values(list(keys)).index].reset_index(drop=True)
