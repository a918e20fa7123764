"""A study prepared for Optuna's figures: symbols of the field as names, escaped text, few enough trials."""

from __future__ import annotations

import math
from collections.abc import Callable

import optuna
from optuna.distributions import CategoricalDistribution
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


def dimensions(study: optuna.Study) -> list[str]:
    return list(dict.fromkeys(name for trial in complete(study) for name in trial.params))


def thinned(study: optuna.Study) -> tuple[optuna.Study, str]:
    """Copy at most MOST_LINES complete trials, evenly spaced in the ranking; a sentence for the caption if some are
    left out."""
    trials = sorted(complete(study), key=lambda trial: trial.values[0])
    copy = optuna.create_study(directions=study.directions)
    copy.add_trials(evenly(trials, MOST_LINES))
    return copy, f" {MOST_LINES} trials, evenly spaced in the ranking." if len(trials) > MOST_LINES else ""
