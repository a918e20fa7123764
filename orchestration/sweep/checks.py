"""Checks of a sweep before anything starts: sampler, metrics, known points, and the study to continue."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from orchestration.storage import STUDY_FILE
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig, read_constraint
from orchestration.sweep.hypotheses import read_hypothesis
from orchestration.sweep.points import check_space
from orchestration.sweep.samplers import check_sampler
from orchestration.sweep.search_space import SearchSpace
from orchestration.sweep.study import accepted
from orchestration.sweep.study_storage import open_storage, study_name
from orchestration.sweep.ticket import trial_config
from orchestration.tracking.schema import CASE, HIGHER_IS_BETTER
from soflow.config import RunConfig
from soflow.config_base import ConfigError
from soflow.evaluation.registry import feature_network_info
from soflow.objectives.registry import OBJECTIVES
from soflow.plugins import label, load

WITH_NEIGHBORS = ("precision", "recall", "density", "coverage")
NEEDS_FEATURES = ("kid", "cmmd", *WITH_NEIGHBORS)
"""Metrics that a file of reference statistics is not enough for."""


def check_study(config: SweepConfig, folder: Path, resuming: bool, space: SearchSpace) -> list[FrozenTrial]:
    """Check that the study can be opened, that it is new if the sweep is, and that it fits the search space.

    Returns:
        The study's trials before this start.

    Raises:
        ConfigError: naming the field.
    """
    check_sampler(config, space)
    _check_metrics(config, space)
    check_space(config, space)
    trials = _earlier_trials(config, folder.absolute(), resuming)
    search_space.known_points(config, space, len(trials))
    _check_extension(config, trials, space)
    return trials


def _earlier_trials(config: SweepConfig, folder: Path, resuming: bool) -> list[FrozenTrial]:
    if config.study_storage is None and not (folder / STUDY_FILE).exists():
        return []  # new, or interrupted before its first trial
    name, storage = study_name(config, folder), open_storage(config.study_storage, folder)
    exists = name in {study.study_name for study in storage.get_all_studies()}
    if exists and not resuming:
        raise ConfigError(f"name = {name}: {config.study_storage} has a study of this name; choose another")
    if not exists and next(folder.glob("trials/*/reports/*"), None):
        raise ConfigError(
            f"resume = {folder.name}: has trials, but {config.study_storage or STUDY_FILE} has no study {name}; "
            "a sweep whose study is in a database keeps its name"
        )
    return accepted(optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)) if exists else []


def _check_metrics(config: SweepConfig, space: SearchSpace) -> None:
    """Refuse metrics that a trial would not report, because trials report theirs only later."""
    searched = {dimension.path for dimension in space.dimensions}
    for place, metric, case in _metrics_named(config):
        points: list[dict[str, Any]] = [{CASE: one.name} for one in config.cases if case in (None, one.name)]
        for point in points or [{}]:
            run = trial_config(config.run, point, config.cases)
            if reason := _reason_unreported(run, metric, searched, place.startswith("hypotheses")):
                raise ConfigError(f"{place}: {metric} is {reason}")


def _reason_unreported(run: RunConfig, metric: str, searched: Collection[str], stated: bool) -> str:
    """Say why a run does not report a metric; empty if it does, or if that depends on a searched path.

    Args:
        stated: True for a hypothesis, which may name metrics that are better if they are higher.
    """
    evaluation = run.evaluation
    configured = {
        "cmmd": run.feature_network == "clip",
        "class_consistency": stated,
        **dict.fromkeys(WITH_NEIGHBORS, stated and evaluation.precision_recall),
        "inception_score": stated and evaluation.inception_score,
    }
    quality = ["fid", "kid", *(name for name, is_reported in configured.items() if is_reported)]
    diagnostics = (f"diagnostics/{re.escape(label(name))}" for name in evaluation.diagnostics)
    groups = ("time", *(("throughput",) if stated else ()), "memory", "loss", "gradient", *diagnostics)
    named = re.fullmatch(rf"({'|'.join(quality)})(_(\d+)nfe)?|(fid|kid)_floor|({'|'.join(groups)})/.+", metric)
    if named is None:
        if re.fullmatch(rf"({'|'.join(HIGHER_IS_BETTER)})(_\d+nfe)?|throughput/.+", metric) and not stated:
            return "better if it is higher; goals and constraints are metrics that are better if they are lower"
        return (
            f"not a metric; metrics are {', '.join(quality)}, fid_2nfe and those of "
            f"{', '.join(f'{group}/' for group in groups)} such as memory/peak_mib"
        )
    if named[3] and "objective.name" not in searched:
        from soflow.evaluation.generated import evaluation_nfe  # imports torch

        nfe = evaluation_nfe(run, load(OBJECTIVES[run.objective.name].implementation))
        if int(named[3]) not in nfe[1:]:
            names = ", ".join([named[1], *(f"{named[1]}_{number}nfe" for number in nfe[1:])])
            return f"not reported with evaluation.nfe = {nfe}; reported: {names}"
    if evaluation.reference and (named[4] or named[1] in NEEDS_FEATURES):
        return f"not reported with evaluation.reference = {evaluation.reference}, a file of statistics"
    if named[1] == "class_consistency" and not run.dataset.conditional:
        return "not reported with dataset.conditional = False: samples have no labels"
    if named[1] == "class_consistency" and not feature_network_info(run.feature_network).dataset:
        return f"not reported with evaluation.feature_network = {run.feature_network}, which does not classify"
    return ""


def _metrics_named(config: SweepConfig) -> Iterator[tuple[str, str, str | None]]:
    """Yield each place that names a metric, the metric, and its case (None: all trials)."""
    for goal in config.goals:
        yield f"goals = {goal}", goal, None
    for constraint in config.constraints:
        yield f"constraints = {constraint}", read_constraint(constraint).metric, None
    for hypothesis in config.hypotheses:
        for term in read_hypothesis(hypothesis).terms:
            yield f"hypotheses = {hypothesis}", term.metric, term.case


def _check_extension(config: SweepConfig, trials: list[FrozenTrial], space: SearchSpace) -> None:
    """Refuse fewer trials than the study has, and dimensions that Optuna cannot combine with its earlier trials."""
    started = sum(trial.state != TrialState.WAITING for trial in trials)
    if config.resolved_num_trials < started:
        raise ConfigError(f"num_trials = {config.num_trials}: the sweep has {started} trials already")
    before = {path: distribution for trial in trials for path, distribution in trial.distributions.items()}
    for dimension in space.dimensions:
        if dimension.path in before:
            try:
                check_distribution_compatibility(before[dimension.path], dimension.distribution)
            except ValueError:
                raise ConfigError(
                    f"search of {dimension.path}: the sweep's trials have {before[dimension.path]}; ranges may change, "
                    "but not choices, kind or :log"
                ) from None
