"""Which points of a search space are valid configurations, and which are left to try."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from orchestration.sweep.config import SweepConfig
from orchestration.sweep.search_space import SearchSpace
from orchestration.sweep.ticket import fault_of
from soflow.config_base import ConfigError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SAMPLED, LEAST_VALID = 200, 0.05
"""Random points from which the valid share of a space is estimated, and the share below which a sweep is refused."""
MOST_DRAWS = 2000
"""Random points to draw in search of a valid one. With a valid share of 5 % all are invalid once in 10^44 times."""
MOST_POINTS = 10_000
"""Combinations of values up to which a space is listed."""


def check_space(config: SweepConfig, space: SearchSpace) -> None:
    """Check that enough points of a search space are valid, so that invalid ones can be drawn again.

    Raises:
        ConfigError: with the valid share of random points and the rule that refuses most of them.
    """
    if config.cases:  # each was checked
        return
    points = [space.point(params) for params in itertools.islice(space.random_params(config.seed), SAMPLED)]
    faults = [fault for point in points if (fault := fault_of(config.run, point))]
    share = 1 - len(faults) / len(points)
    if share < LEAST_VALID:
        fault, count = Counter(faults).most_common(1)[0]
        raise ConfigError(
            f"search: {share:.1%} of {len(points)} random points are valid, fewer than {LEAST_VALID:.0%}; "
            f"{count} are refused by: {fault}"
        )


def valid_points(config: SweepConfig, space: SearchSpace) -> list[dict[str, Any]] | None:
    """List all different valid points of a finite space; None if it is infinite or has over MOST_POINTS."""
    combinations = 1
    for dimension in space.dimensions:
        if dimension.values is None:
            return None
        combinations *= len(dimension.values)
    if combinations > MOST_POINTS:
        return None
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*(dimension.values or () for dimension in space.dimensions)):
        params = dict(zip((dimension.path for dimension in space.dimensions), values, strict=True))
        if space.keeps_limits(params):
            point = space.point(params)
            found.setdefault(key_of(point), point)
    return [point for point in found.values() if not fault_of(config.run, point)]


def untried(
    config: SweepConfig, space: SearchSpace, finite: list[dict[str, Any]] | None, tried: Iterable[str], number: int
) -> dict[str, Any] | None:
    """Choose a valid point at random that was not tried before; None if none is found.

    Args:
        finite: all valid points, if the space is finite.
        tried: keys of the points tried before.
        number: of the next trial; together with the sweep's seed it decides which point is chosen.
    """
    before = set(tried)
    if finite is not None:
        left = [point for point in finite if key_of(point) not in before]
        return random.Random(f"{config.seed}/{number}").choice(left) if left else None
    for params in itertools.islice(space.random_params(config.seed + number), MOST_DRAWS):
        if not fault_of(config.run, space.point(params)):
            return params
    return None


def key_of(point: dict[str, Any]) -> str:
    """Return a text that is equal for equal points."""
    return json.dumps(point, sort_keys=True, default=str)


def as_many_as_points(config: SweepConfig, space: SearchSpace, trials: Collection[FrozenTrial] = ()) -> SweepConfig:
    """Lower `num_trials` to the trials so far and the valid points that are left, if these are fewer, and say so.

    Args:
        trials: trials of a sweep that is resumed, maybe of another space; those that have started count as well.
    """
    points = None if config.cases else valid_points(config, space)
    if points is None:
        return config
    started = [space.point(trial.params) for trial in trials if trial.state.name != "WAITING"]
    left = {key_of(point) for point in points} - {key_of(point) for point in started}
    limit = max(len(started) + len(left), len(config.known_points or ()))  # known points may repeat each other
    if config.resolved_num_trials <= limit:
        return config
    left_text = f", {len(left)} untried" if started else ""
    print(
        f"the search space has {len(points)} valid points{left_text}: {limit} trials instead of {config.num_trials}; "
        "--seeds-per-trial 3 trains each with three seeds",
        flush=True,
    )
    return config.model_copy(update={"num_trials": limit})
