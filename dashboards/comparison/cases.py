"""The cases of a comparison: measurements over seeds, and ratios to the first case, paired by seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pandas as pd

from soflow.statistics import Ratio, holm, mean_interval, paired_ratio


@dataclass(frozen=True)
class Measure:
    """A metric of a case: its values by seed, their mean and its 95 % interval (NaN for a single seed)."""

    values: dict[int, float]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Case:
    """One configuration over its seeds.

    Attributes:
        trials: numbers of its finished trials by seed.
        lost: numbers of its other trials, which are excluded.
        measures: reported metrics of the finished trials.
        against: ratio to the first case by metric; empty for the first case.
        p: p-value of the first goal's ratio, corrected for all cases; NaN without a test.
    """

    name: str
    trials: dict[int, int]
    lost: list[int]
    measures: dict[str, Measure]
    against: dict[str, Ratio] = field(default_factory=dict)
    p: float = math.nan


def build_cases(
    trials: pd.DataFrame, metrics: list[str], compared: list[str], goal: str | None, resolutions: dict[str, float]
) -> list[Case]:
    """Summarize all cases and compare each with the first one.

    Args:
        trials: rows of `SweepData.trials`, with `case` as text and `seed` as a number.
        compared: metrics whose ratios to the first case are computed.
        goal: metric that is tested; None if it must not be compared.
        resolutions: spacing of the possible values of each metric, 0 for continuous ones.
    """
    names = trials.sort_values("trial")["case"].unique()
    cases = [_case(name, trials[trials["case"] == name], metrics) for name in names]
    cases = [*cases[:1], *(replace(case, against=_ratios(case, cases[0], compared, resolutions)) for case in cases[1:])]
    ps = holm([case.against[goal].p if goal in case.against else math.nan for case in cases])
    return [replace(case, p=p) for case, p in zip(cases, ps, strict=True)]


def _case(name: str, rows: pd.DataFrame, metrics: list[str]) -> Case:
    finished = rows[(rows["state"] == "finished") & rows["seed"].notna()].astype({"seed": int}).set_index("seed")
    trials = {seed: int(number) for seed, number in finished["trial"].items()}
    lost = [int(number) for number in rows["trial"] if number not in trials.values()]
    measures = {}
    for metric in metrics:
        reported = finished[metric].items() if metric in finished else ()
        if values := {seed: float(value) for seed, value in reported if math.isfinite(value)}:
            measures[metric] = _measure(values)
    return Case(name, trials, lost, measures)


def _measure(values: dict[int, float]) -> Measure:
    numbers = list(values.values())
    return Measure(values, *(mean_interval(numbers) if len(numbers) > 1 else (numbers[0], math.nan, math.nan)))


def _ratios(case: Case, first: Case, metrics: list[str], resolutions: dict[str, float]) -> dict[str, Ratio]:
    """Compute the ratio to the first case over shared seeds, for metrics whose values are positive."""
    ratios = {}
    for metric in metrics:
        if metric not in case.measures or metric not in first.measures:
            continue
        values, reference = case.measures[metric].values, first.measures[metric].values
        pairs = [(values[seed], reference[seed]) for seed in sorted(set(values) & set(reference))]
        if pairs and all(value > 0 for pair in pairs for value in pair):
            ratios[metric] = paired_ratio(*zip(*pairs, strict=True), resolutions=(resolutions[metric],) * 2)
    return ratios
