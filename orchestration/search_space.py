"""Search spaces: dotted paths into the run's configuration, each with what may be tried there."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml

from orchestration.config import SweepConfig
from soflow.config import RunConfig, flatten, override, parse, to_dict
from soflow.objectives import OBJECTIVES
from soflow.sections import ConfigError

if TYPE_CHECKING:
    import optuna

AT_MOST = {"objective.r_end": "objective.r_init"}
"""Dimensions whose value must not exceed another's."""


@dataclass(frozen=True)
class Dimension:
    """One searched path: a range (low, high) or a set of choices."""

    path: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    integer: bool = False

    @classmethod
    def read(cls, assignment: str) -> Dimension:
        """From PATH=LOW:HIGH, PATH=LOW:HIGH:log or PATH=A,B,C.

        Raises:
            ConfigError: if it reads otherwise.
        """
        path, equals, spec = assignment.partition("=")
        bounds = spec.split(":")
        form = ConfigError(f"search = {assignment}: must read PATH=LOW:HIGH, PATH=LOW:HIGH:log or PATH=A,B,C")
        if not equals or not path or not spec:
            raise form
        if len(bounds) == 1:
            try:
                return cls(path, choices=tuple(yaml.safe_load(choice) for choice in spec.split(",")))
            except yaml.YAMLError:
                raise form from None
        low, high, *scale = bounds
        low, high = _number(low), _number(high)
        if low is None or high is None or scale not in ([], ["log"]) or not low < high or (scale and low <= 0):
            raise ConfigError(
                f"search = {assignment}: must have numbers LOW < HIGH, both above 0 with :log, as in PATH=0.001:0.1:log"
            )
        return cls(path, low, high, log=bool(scale))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that must all be allowed for the dimension to make sense."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: optuna.Trial, limit: float | None) -> None:
        """Let Optuna choose a value, not above `limit`."""
        if self.choices:
            trial.suggest_categorical(self.path, self.choices)
            return
        high = self.high if limit is None else min(self.high, limit)
        if self.integer:
            trial.suggest_int(self.path, self.low, high, log=self.log)
        else:
            trial.suggest_float(self.path, self.low, high, log=self.log)


@dataclass(frozen=True)
class SearchSpace:
    """The dimensions of a sweep around a base configuration; calling it lets an Optuna trial choose a point."""

    dimensions: tuple[Dimension, ...]
    base: dict[str, Any]
    """The base configuration with dotted paths."""

    def __call__(self, trial: optuna.Trial) -> None:
        for dimension in self.dimensions:
            limit = AT_MOST.get(dimension.path)
            dimension.suggest(trial, trial.params.get(limit, self.base[limit]) if limit else None)

    @property
    def base_point(self) -> dict[str, Any]:
        """The base configuration's own values, clipped into the space: the sweep's first trial."""
        point = {}
        for dimension in self.dimensions:
            value = self.base[dimension.path]
            if dimension.choices:
                point[dimension.path] = value if value in dimension.choices else dimension.choices[0]
            else:
                point[dimension.path] = min(max(value, dimension.low), dimension.high)
        return point


def build(config: SweepConfig) -> SearchSpace:
    """The sweep's search space.

    Raises:
        ConfigError: if a path is unknown, or an extreme value of a dimension is not allowed at its path.
    """
    base = to_dict(config.run)
    flat = flatten(base)
    dimensions = []
    for assignment in config.search or OBJECTIVES[config.objective.name].search:
        dimension = Dimension.read(assignment)
        if dimension.path not in flat:
            close = difflib.get_close_matches(dimension.path, flat, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(flat)}"
            raise ConfigError(f"search = {assignment}: {dimension.path} is no path of the configuration; {hint}")
        if dimension.path in {other.path for other in dimensions}:
            raise ConfigError(f"search = {assignment}: {dimension.path} is searched twice")
        is_integer = isinstance(flat[dimension.path], int) and not dimension.choices
        dimensions.append(replace(dimension, integer=is_integer))
    dimensions.sort(key=lambda dimension: dimension.path in AT_MOST)  # what limits others is chosen first
    for dimension in dimensions:
        _check_extremes(dimension, {d.path: d for d in dimensions}, base)
    return SearchSpace(tuple(dimensions), flat)


def _check_extremes(dimension: Dimension, searched: dict[str, Dimension], base: dict[str, Any]) -> None:
    for value in dimension.extremes:
        point = {dimension.path: value}
        # Judge a limited range where it has most room; that the lowest values fit is judged at its limit. A choice
        # cannot be limited, so all of them must always fit.
        for limited, limit in AT_MOST.items():
            if dimension.path == limited and limit in searched:
                point[limit] = (min if dimension.choices else max)(searched[limit].extremes)
            elif dimension.path == limit and limited in searched:
                point[limited] = searched[limited].extremes[0]
        try:
            parse(override(base, point))
        except ConfigError as error:
            raise ConfigError(f"search of {dimension.path}: {error}") from None


def trial_config(base: RunConfig, point: dict[str, Any]) -> RunConfig:
    """The base configuration with a trial's values put in."""
    return parse(override(to_dict(base), point))


def _number(text: str) -> float | int | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None
