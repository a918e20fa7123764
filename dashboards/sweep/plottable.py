"""A study prepared for Optuna's figures: symbols of the field as names, escaped text, few enough trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from dashboards.html.drawing import label
from dashboards.reading.images import evenly
from dashboards.reading.sweep_data import SweepData
from orchestration.terminal.format import short_name

MOST_LINES = 60
"""Most trials in figures that more would clutter; a contour's size grows with their square."""


def plottable_study(data: SweepData) -> optuna.Study | None:
    """Copy the study under short names, with text that plotly cannot take for markup."""
    if data.study is None:
        return None
    names = {path: short_name(path) for path in data.paths}
    labels = {path: label(name if list(names.values()).count(name) == 1 else path) for path, name in names.items()}
    study = optuna.create_study(directions=data.study.directions)
    study.add_trials([_plottable(trial, labels) for trial in data.study.get_trials(deepcopy=False)])
    return study


def _plottable(trial: FrozenTrial, labels: dict[str, str]) -> FrozenTrial:
    params, distributions = {}, {}
    for path, distribution in trial.distributions.items():
        value = trial.params[path]
        if isinstance(distribution, CategoricalDistribution):
            texts = {choice: label(str(choice)) for choice in distribution.choices}
            if len(set(texts.values())) < len(texts):
                texts = {choice: f"{number}: {text}" for number, (choice, text) in enumerate(texts.items(), 1)}
            distribution, value = CategoricalDistribution(list(texts.values())), texts[value]
        params[labels[path]], distributions[labels[path]] = value, distribution
    finished = trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values))
    state, values = (TrialState.COMPLETE, trial.values) if finished else (TrialState.FAIL, None)
    return create_trial(
        state=state, values=values, params=params, distributions=distributions, constraints=trial.constraints
    )


def complete(study: optuna.Study | None) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if study is not None else []


def first_goal(study: optuna.Study) -> Callable[[FrozenTrial], float] | None:
    """Make Optuna's `target` for a study with several goals."""
    return (lambda trial: trial.values[0]) if len(study.directions) > 1 else None


@dataclass(frozen=True)
class Point:
    """A trial with its first goal and its parameters."""

    number: int
    value: float
    params: dict[str, Any]


def finished_points(study: optuna.Study | None) -> list[Point]:
    return [Point(trial.number, trial.values[0], trial.params) for trial in complete(study)]


def stopped_points(data: SweepData, study: optuna.Study) -> list[Point]:
    """List the trials that early stopping ended, at the last value that they reported."""
    goal, trials = data.goals[0], study.get_trials(deepcopy=False)
    rows = data.trials[(data.trials["state"] == "stopped") & (data.trials["trial"] < len(trials))]
    values = dict(zip(rows["trial"], rows[goal], strict=True)) if goal in rows else {}
    return [Point(number, value, trials[number].params) for number, value in values.items() if math.isfinite(value)]


def importances(study: optuna.Study | None) -> dict[str, float]:
    """Compute the importance of each parameter (PED-ANOVA), the largest first; empty if all trials are equally good."""
    if len({trial.values[0] for trial in complete(study)}) < 2:
        return {}
    return optuna.importance.get_param_importances(study, target=first_goal(study))


def by_importance(study: optuna.Study) -> list[str]:
    """List the parameters of finished trials, the most important first."""
    return list(dict.fromkeys([*importances(study), *(name for trial in complete(study) for name in trial.params)]))


def distribution_of(study: optuna.Study, name: str) -> BaseDistribution:
    return next(trial.distributions[name] for trial in complete(study) if name in trial.distributions)


def thinned(study: optuna.Study) -> tuple[optuna.Study, str]:
    """Copy at most MOST_LINES complete trials, evenly spaced in the ranking; a sentence for the caption if some are
    left out."""
    trials = sorted(complete(study), key=lambda trial: trial.values[0])
    copy = optuna.create_study(directions=study.directions)
    copy.add_trials(evenly(trials, MOST_LINES))
    return copy, f" {MOST_LINES} trials, evenly spaced in the ranking." if len(trials) > MOST_LINES else ""
