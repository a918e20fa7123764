"""Search spaces: dotted paths into the configuration of a run, each with a range or a set of choices."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestration.sweep.cases import parse_value, split_values
from orchestration.sweep.config import CONDITIONAL_SAMPLERS, SweepConfig
from orchestration.sweep.ticket import fault_of, trial_config
from orchestration.tracking.schema import CASE
from soflow.config import flatten, to_dict
from soflow.config_base import ConfigError
from soflow.objectives.registry import OBJECTIVES

if TYPE_CHECKING:
    import optuna

AT_MOST = {"objective.r_end": "objective.r_init"}
"""Dimensions whose value must not exceed that of another path."""
UNUSED_WHERE = {"objective.r_init": ("objective.gap_schedule", "constant")}
"""Dimensions without effect while another path has the given value: r_init, as the constant schedule is r_end."""
MEASURED = ("evaluation.", "dataset.")
NOT_MEASURED = ("dataset.conditional", "dataset.augmentation", "dataset.augmentations", "dataset.loading_processes")
"""Sections that decide what FID measures, and their fields that do not."""
_RANGE = re.compile(r"(?![A-Za-z_][\w.]*:[A-Za-z_]\w*$)[^,:]*:[^,]*")
"""A colon, but not the reference of a plug-in."""
MOST_COMBINATIONS = 100
"""Random points with which an extreme value is combined before it is refused."""
PAPER: dict[str, dict[str, Any]] = {
    "soflow": {
        "flow_matching_fraction": 0.75,
        "gap_schedule": "exponential",
        "r_init": 0.1,
        "r_end": 0.002,
        "guidance_strength": 3.0,
        "velocity_mix": 0.25,
    },
    "meanflow": {"flow_matching_fraction": 0.75, "guidance_omega": 1.0, "guidance_kappa": 0.5},
}
"""Settings of the objectives' papers on ImageNet 256 (SoFlow arXiv 2512.15657, MeanFlow arXiv 2505.13447)."""


@dataclass(frozen=True)
class Dimension:
    """One searched path: a range (low, high) or a set of choices."""

    path: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()
    integer: bool = False

    @classmethod
    def read(cls, assignment: str) -> Dimension:
        """Parse PATH=LOW:HIGH, PATH=LOW:HIGH:log or PATH=A,B,C.

        Raises:
            ConfigError: if the text has another form.
        """
        path, equals, spec = assignment.partition("=")
        bounds = spec.split(":") if _RANGE.fullmatch(spec) else [spec]
        malformed = ConfigError(f"search = {assignment}: must be PATH=LOW:HIGH, PATH=LOW:HIGH:log or PATH=A,B,C")
        if not equals or not path or not spec:
            raise malformed
        if len(bounds) == 1:
            choices = tuple(parse_value(choice.strip()) for choice in split_values(spec))
            if any(isinstance(choice, list) for choice in choices):
                raise malformed
            return cls(path, choices=choices)
        (low, high), scale = map(_number, bounds[:2]), bounds[2:]
        least = 0 if scale else -math.inf
        if low is None or high is None or scale not in ([], ["log"]) or not least < low < high < math.inf:
            raise ConfigError(
                f"search = {assignment}: must have finite numbers LOW < HIGH, both above 0 with :log, as in "
                "PATH=0.001:0.1:log"
            )
        return cls(path, low, high, log=bool(scale))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Bounds or all choices; each must be a valid value."""
        return self.choices or (self.low, self.high)

    @property
    def values(self) -> Sequence[Any] | None:
        """All values of a choice or of a range of integers; None for a range of real numbers."""
        return self.choices or (range(int(self.low), int(self.high) + 1) if self.integer else None)

    def __contains__(self, value: Any) -> bool:
        return value in self.choices if self.choices else self.low <= value <= self.high

    @property
    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: optuna.Trial, limit: float | None = None) -> None:
        """Let Optuna choose a value that does not exceed `limit`."""
        if self.choices:
            trial.suggest_categorical(self.path, self.choices)
            return
        high = self.high if limit is None else min(self.high, limit)
        if self.integer:
            trial.suggest_int(self.path, int(self.low), int(high), log=self.log)
        else:
            trial.suggest_float(self.path, self.low, high, log=self.log)


@dataclass(frozen=True)
class SearchSpace:
    """Dimensions of a sweep around a base configuration; calling it lets an Optuna trial suggest a point."""

    dimensions: tuple[Dimension, ...]
    base: dict[str, Any]
    """The base configuration by dotted path."""
    fixed: bool = False
    """Suggest every dimension in every trial, with or without effect, for samplers that require a fixed space."""

    def __call__(self, trial: optuna.Trial) -> None:
        for dimension in self.dimensions:
            if self.fixed or self.is_used(dimension.path, trial.params):
                dimension.suggest(trial, self.limit(dimension.path, trial.params))

    def point(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the value of each searched path of a trial; the base value where a path has no effect."""
        return {
            dimension.path: params[dimension.path]
            if dimension.path in params and self.is_used(dimension.path, params)
            else self.base[dimension.path]
            for dimension in self.dimensions
        }

    def is_used(self, path: str, params: dict[str, Any]) -> bool:
        """Check whether a path has an effect, given the parameters that were chosen before it."""
        if path not in UNUSED_WHERE:
            return True
        condition, value = UNUSED_WHERE[path]
        return params.get(condition, self.base.get(condition)) != value

    def keeps_limits(self, params: dict[str, Any]) -> bool:
        """Check that no value exceeds that of the path which limits it."""
        return all(params[path] <= self.limit(path, params) for path in AT_MOST if path in params)

    def limit(self, path: str, params: dict[str, Any]) -> float | None:
        limit = AT_MOST.get(path)
        if limit is None:
            return None
        return params[limit] if limit in params and self.is_used(limit, params) else self.base[limit]

    def random_params(self, seed: int) -> Iterator[dict[str, Any]]:
        """Draw parameters at random, without end."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
        while True:
            trial = study.ask()
            self(trial)
            yield dict(trial.params)

    @property
    def base_point(self) -> dict[str, Any]:
        """Values of the base configuration, clipped into the space: the first trial of a sweep."""
        point = {}
        for dimension in self.dimensions:
            value = self.base[dimension.path]
            if dimension.choices:
                point[dimension.path] = value if value in dimension else dimension.choices[0]
            else:
                point[dimension.path] = min(max(value, dimension.low), dimension.high)
        return point


def build(config: SweepConfig) -> SearchSpace:
    """Build the search space of a sweep.

    Raises:
        ConfigError: if a path is unknown, or an extreme value of a dimension is not allowed at its path.
    """
    flat = flatten(to_dict(config.run))
    if config.cases:
        return _space_of_cases(config, flat)
    dimensions: list[Dimension] = []
    for assignment in config.search or OBJECTIVES[config.objective.name].search:
        dimension = Dimension.read(assignment)
        if dimension.path not in flat:
            close = difflib.get_close_matches(dimension.path, flat, n=1)
            hint = f"did you mean {close[0]}?" if close else "--help all lists all paths"
            raise ConfigError(f"search = {assignment}: {dimension.path} is not a path of the configuration; {hint}")
        if dimension.path in {other.path for other in dimensions}:
            raise ConfigError(f"search = {assignment}: {dimension.path} is searched twice")
        if dimension.path.startswith(MEASURED) and dimension.path not in NOT_MEASURED:
            raise ConfigError(
                f"search = {assignment}: {dimension.path} changes what FID measures, so its trials cannot be ranked; "
                "compare its values with --cases"
            )
        if dimension.choices:
            dimension = replace(dimension, choices=_typed(dimension, config))
        integer = isinstance(flat[dimension.path], int) and not isinstance(flat[dimension.path], bool)
        dimensions.append(replace(dimension, integer=integer and not dimension.choices))
    dimensions.sort(key=_dependency_order({dimension.path: index for index, dimension in enumerate(dimensions)}))
    space = SearchSpace(tuple(dimensions), flat, fixed=config.sampler not in CONDITIONAL_SAMPLERS)
    for dimension in sorted(dimensions, key=lambda dimension: not _is_limited(dimension)):
        _check_extremes(dimension, space, config)
        _check_use(dimension, space)
    return space


def _typed(dimension: Dimension, config: SweepConfig) -> tuple[Any, ...]:
    """Return the choices as the configuration has them, e.g. 1.0 where a whole number was written for a real one."""
    typed = []
    for choice in dimension.choices:
        try:
            typed.append(flatten(to_dict(trial_config(config.run, {dimension.path: choice})))[dimension.path])
        except ConfigError:  # not valid at the base, perhaps elsewhere
            typed.append(choice)
    return tuple(typed)


def _space_of_cases(config: SweepConfig, flat: dict[str, Any]) -> SearchSpace:
    """Build the space of all cases with all seeds, as two dimensions."""
    names = tuple(case.name for case in config.cases)
    for name in names:
        try:
            trial_config(config.run, {CASE: name}, config.cases)
        except ConfigError as error:
            raise ConfigError(f"cases, {name}: {error}") from None
    last = max(index for _, index in config.planned_trials)
    seeds = Dimension("seed", config.seed, config.seed + last, integer=True)
    return SearchSpace((Dimension(CASE, choices=names), seeds), flat | {CASE: names[0]})


def _dependency_order(order: dict[str, int]) -> Callable[[Dimension], tuple]:
    """Make a sort key: the order of `order`, but limits and conditions before the dimensions that depend on them."""

    def key(dimension: Dimension) -> tuple:
        condition, _ = UNUSED_WHERE.get(dimension.path, ("", ""))
        return dimension.path in AT_MOST, max(order[dimension.path], order.get(condition, -1) + 0.5)

    return key


def _check_use(dimension: Dimension, space: SearchSpace) -> None:
    """Reject a dimension without any effect, and one whose limit falls back to a base value that is too low."""
    searched = {other.path: other for other in space.dimensions}
    condition, value = UNUSED_WHERE.get(dimension.path, ("", ""))
    if condition and condition not in searched and space.base.get(condition) == value:
        raise ConfigError(f"search of {dimension.path}: has no effect where {condition} = {value}")
    limit = AT_MOST.get(dimension.path)
    if limit in searched and limit in UNUSED_WHERE:
        condition, value = UNUSED_WHERE[limit]
        lowest = (max if dimension.choices else min)(dimension.extremes)
        if condition in searched and value in searched[condition] and lowest > space.base[limit]:
            raise ConfigError(
                f"search of {dimension.path}: {lowest:g} exceeds {limit} = {space.base[limit]:g}, the limit for "
                f"{condition} = {value}"
            )


def _check_extremes(dimension: Dimension, space: SearchSpace, config: SweepConfig) -> None:
    """Reject a dimension with an extreme value that is valid neither at the base nor at random other values."""
    searched = {other.path: other for other in space.dimensions}
    for value in dimension.extremes:
        point = {dimension.path: value}
        # A range is clipped to its limit: its values must be valid at the loosest limit only, its lowest value at the
        # tightest. Choices cannot be clipped: all of them must be valid at the tightest limit.
        for limited, limit in AT_MOST.items():
            if dimension.path == limited and limit in searched:
                point[limit] = (min if dimension.choices else max)(searched[limit].extremes)
            elif dimension.path == limit and limited in searched:
                point[limited] = searched[limited].extremes[0]
        fault = fault_of(config.run, point)
        others = itertools.islice(space.random_params(config.seed), MOST_COMBINATIONS)
        if fault and (
            _is_limited(dimension) or all(fault_of(config.run, space.point(params) | point) for params in others)
        ):
            raise ConfigError(f"search of {dimension.path}: {fault}")


def _is_limited(dimension: Dimension) -> bool:
    """Check whether a dimension limits another or is limited; these checks come first, as random points need them."""
    return dimension.path in AT_MOST or dimension.path in AT_MOST.values()


def known_points(config: SweepConfig, space: SearchSpace, done: int = 0) -> list[dict[str, Any]]:
    """Return the points to evaluate first: the configured ones, or the base and the paper's settings in the space.

    Args:
        done: number of the sweep's trials, of which the first had known points; these are left out. They may be of an
            earlier search space.

    Raises:
        ConfigError: if a configured point lies outside the space.
    """
    if config.cases:
        return [{CASE: name, "seed": config.seed + index} for name, index in config.planned_trials][done:]
    if config.known_points is not None:
        return [_read_point(text, config, space) for text in config.known_points[done:]]
    searched = {dimension.path: dimension for dimension in space.dimensions}
    paper = {f"objective.{name}": value for name, value in PAPER.get(config.objective.name, {}).items()}
    inside = {path: value for path, value in paper.items() if path in searched and value in searched[path]}
    points = [space.base_point, space.base_point | inside]
    unique = points if points[0] != points[1] else points[:1]
    usable = [point for point in unique if space.keeps_limits(point) and not fault_of(config.run, space.point(point))]
    return usable[done:]


def _read_point(text: str, config: SweepConfig, space: SearchSpace) -> dict[str, Any]:
    searched = {dimension.path: dimension for dimension in space.dimensions}
    point = {}
    for assignment in split_values(text):
        path, equals, value = assignment.partition("=")
        if not equals or path not in searched:
            raise ConfigError(f"known_points = {text}: {path} must be a searched path, one of {', '.join(searched)}")
        point[path] = parse_value(value) if searched[path].choices else _number(value)
        if (point[path] is None and not searched[path].choices) or point[path] not in searched[path]:
            raise ConfigError(f"known_points = {text}: {path} = {value} lies outside the search space")
    point = space.base_point | point
    if not space.keeps_limits(point):
        raise ConfigError(f"known_points = {text}: {' and '.join(point)} exclude each other")
    if fault := fault_of(config.run, space.point(point)):
        raise ConfigError(f"known_points = {text}: {fault}")
    return point


def _number(text: str) -> float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None
