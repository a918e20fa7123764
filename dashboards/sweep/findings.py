"""Findings of a search: the ranking, the best trial, the default configuration's trial."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dashboards.reading.protocols import Protocol, find_protocols, is_quality
from dashboards.reading.sweep_data import SweepData, parse_param
from orchestration.sweep.config import read_constraint
from orchestration.sweep.rank import rank_trials
from soflow.statistics import pareto_front


@dataclass(frozen=True)
class Findings:
    """Analysis of a search.

    Attributes:
        table: the trials from best to worst, with `rank` (NaN for unranked trials), `feasible` and, for several
            protocols, the `protocol`'s letter.
        protocols: how FIDs were measured; a single one if all are comparable.
        ranked: False if goals were measured by different protocols.
        constraints: (metric, largest allowed value).
        best: number of the best trial; None without ranked trials.
        default: number of the trial with the base configuration's values; None if it was not tried.
    """

    data: SweepData
    table: pd.DataFrame
    protocols: list[Protocol]
    ranked: bool
    constraints: list[tuple[str, float]]
    best: int | None
    default: int | None

    @property
    def comparable(self) -> bool:
        return len(self.protocols) <= 1

    @property
    def illustrated(self) -> dict[str, int]:
        """Trials whose samples a report shows: the best, the median and the worst ranked one, as far as they differ."""
        ranked = [int(number) for number in self.table.loc[self.table["rank"].notna(), "trial"]]
        illustrated = {"Best": ranked[0]} if ranked else {}
        if len(ranked) > 2:
            illustrated["Median"] = ranked[len(ranked) // 2]
        if len(ranked) > 1:
            illustrated["Worst finished"] = ranked[-1]
        return illustrated

    @property
    def pareto_trials(self) -> list[int]:
        """Ranked trials on the Pareto front of all goals."""
        goals = self.data.goals
        if not set(goals) <= set(self.table):
            return []
        ranked = self.table[self.table["rank"].notna()]
        return ranked.loc[pareto_front(ranked[goals].to_numpy(np.float64)), "trial"].tolist()


def find(data: SweepData) -> Findings:
    """Rank the trials of a search if they are comparable."""
    protocols, constraints = find_protocols(data), _constraints(data)
    ranked = len(protocols) <= 1 or not any(is_quality(goal) for goal in data.goals)
    table = data.trials.assign(feasible=True)
    for metric, bound in constraints:
        table["feasible"] &= (table[metric] <= bound) if metric in table else False
    table = _ranked(table, [goal for goal in data.goals if goal in table]) if ranked else table.assign(rank=math.nan)
    if len(protocols) > 1:
        letters = {number: protocol.letter for protocol in protocols for number in protocol.trials}
        table["protocol"] = table["trial"].map(letters)
    best = int(table["trial"].iloc[0]) if len(table) and table["rank"].iloc[0] == 1 else None
    return Findings(data, table, protocols, ranked, constraints, best, _default(data))


def _ranked(table: pd.DataFrame, goals: list[str]) -> pd.DataFrame:
    """Sort trials and number the finished, feasible ones with a finite first goal."""
    table = rank_trials(table, goals)
    values = table[goals[0]] if goals else pd.Series(math.nan, index=table.index)
    counts = (table["state"] == "finished") & table["feasible"] & values.map(math.isfinite)
    return table.assign(rank=counts.cumsum().where(counts).astype(float))


def _constraints(data: SweepData) -> list[tuple[str, float]]:
    constraints = []
    for text in re.findall(r"[\w/.-]+<=[-+.\w]+", data.param("constraints")):
        try:
            metric, bound = read_constraint(text)
        except ValueError:
            continue
        constraints.append((metric, bound))
    return constraints


def _default(data: SweepData) -> int | None:
    """Find the trial whose searched values are all those of the base configuration."""
    base = {path: parse_param(data.param(path)) for path in data.paths if data.param(path)}
    if len(base) < len(data.paths) or not base:
        return None
    for _, row in data.trials.iterrows():
        if all(row[path] == value or row[path] != row[path] for path, value in base.items()):
            return int(row["trial"])
    return None
