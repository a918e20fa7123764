"""A study for figures: with the field's symbols, few enough trials, and text that plotly cannot take for markup."""

from __future__ import annotations

import html
import math
from collections.abc import Callable

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from dashboards.reading.sweep_data import SweepRecord
from dashboards.sweep.findings import shortened
from orchestration.terminal.format import short_name

SPREAD = 60
"""Trials that figures show which more would fill; a contour's size grows with their square."""


def study_of(record: SweepRecord) -> optuna.Study | None:
    """The study under the field's symbols, with text that plotly cannot take for markup."""
    if record.study is None:
        return None
    names = {path: short_name(path) for path in record.paths}
    labels = {
        path: html.escape(shortened(name if list(names.values()).count(name) == 1 else path))
        for path, name in names.items()
    }
    study = optuna.create_study(directions=record.study.directions)
    study.add_trials([_presentable(trial, labels) for trial in record.study.get_trials(deepcopy=False)])
    return study


def _presentable(trial: FrozenTrial, labels: dict[str, str]) -> FrozenTrial:
    params, distributions = {}, {}
    for path, distribution in trial.distributions.items():
        value = trial.params[path]
        if isinstance(distribution, CategoricalDistribution):
            texts = {choice: html.escape(shortened(str(choice))) for choice in distribution.choices}
            if len(set(texts.values())) < len(texts):
                texts = {choice: f"{number}: {text}" for number, (choice, text) in enumerate(texts.items(), 1)}
            distribution, value = CategoricalDistribution(list(texts.values())), texts[value]
        params[labels[path]], distributions[labels[path]] = value, distribution
    drawn = trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values))
    state, values = (TrialState.COMPLETE, trial.values) if drawn else (TrialState.FAIL, None)
    return create_trial(
        state=state, values=values, params=params, distributions=distributions, constraints=trial.constraints
    )


def complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def first_goal(study: optuna.Study) -> Callable[[FrozenTrial], float] | None:
    """Of several goals, the first."""
    return (lambda trial: trial.values[0]) if len(study.directions) > 1 else None


def dimensions(study: optuna.Study) -> list[str]:
    return list(dict.fromkeys(name for trial in complete(study) for name in trial.params))


def only_some(study: optuna.Study) -> str:
    several = len(complete(study)) > SPREAD
    return f" {SPREAD} trials, spread evenly over the ranking from the best to the worst." if several else ""


def spread(study: optuna.Study) -> optuna.Study:
    """The study with few enough trials to be told apart, from the best to the worst."""
    some = optuna.create_study(directions=study.directions)
    some.add_trials(evenly(sorted(complete(study), key=lambda trial: trial.values[0])))
    return some


def evenly(items: list) -> list:
    """At most SPREAD of them, the first and the last among them."""
    if len(items) <= SPREAD:
        return items
    return [items[round(position * (len(items) - 1) / (SPREAD - 1))] for position in range(SPREAD)]
