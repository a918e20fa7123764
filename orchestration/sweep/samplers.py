"""Optuna's samplers by name, and the searches that each supports.

Every trial gets a new sampler, seeded by the sweep's seed and the trial's number. Its suggestion depends only on these
and on the study, so that a resumed sweep suggests the same points as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna import samplers
from optuna.exceptions import ExperimentalWarning

from orchestration.sweep.config import SweepConfig
from soflow.config_base import ConfigError

if TYPE_CHECKING:
    from orchestration.sweep.search_space import SearchSpace


@dataclass(frozen=True)
class SamplerSpec:
    """Factory and abilities of a sampler."""

    make: Callable[[SweepConfig, int], samplers.BaseSampler]
    """Factory, called with the sweep and the seed of one trial."""
    several_goals: bool = True
    """Supports more than one goal."""
    constraints: bool = True
    """Supports constraints, or ignores results altogether, so that constraints do not matter."""
    categorical: bool = True
    """Searches categorical dimensions; otherwise they are sampled at random."""
    package: str | None = None
    """Required package beyond this project's requirements."""


def _tpe(config: SweepConfig, seed: int) -> samplers.BaseSampler:
    # `group` models dimensions of the same conditional branch together; the constant liar spreads concurrent trials.
    return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=config.max_concurrent != 1)


def _gp(config: SweepConfig, seed: int) -> samplers.BaseSampler:
    return samplers.GPSampler(seed=seed, warn_independent_sampling=False)


def _cmaes(config: SweepConfig, seed: int) -> samplers.BaseSampler:
    return samplers.CmaEsSampler(
        seed=seed, warn_independent_sampling=False, independent_sampler=samplers.RandomSampler(seed)
    )


def _qmc(config: SweepConfig, seed: int) -> samplers.BaseSampler:
    # All trials must share one scrambled Sobol sequence, hence the sweep's seed; dimensions outside it use the trial's.
    return samplers.QMCSampler(
        scramble=True,
        seed=config.seed,
        independent_sampler=samplers.RandomSampler(seed),
        warn_independent_sampling=False,
    )


def _population(config: SweepConfig) -> int:
    """Return the population size: five generations for a small sweep, at most Optuna's default of 50."""
    return min(50, max(4, (config.num_trials or 0) // 5))


SAMPLERS = {
    "tpe": SamplerSpec(_tpe),
    "gp": SamplerSpec(_gp),
    "cmaes": SamplerSpec(_cmaes, several_goals=False, constraints=False, categorical=False, package="cmaes"),
    "nsga2": SamplerSpec(lambda config, seed: samplers.NSGAIISampler(population_size=_population(config), seed=seed)),
    "nsga3": SamplerSpec(lambda config, seed: samplers.NSGAIIISampler(population_size=_population(config), seed=seed)),
    "qmc": SamplerSpec(_qmc),
    "random": SamplerSpec(lambda config, seed: samplers.RandomSampler(seed)),
}


def check_sampler(config: SweepConfig, space: SearchSpace) -> None:
    """Check that the configured sampler supports the sweep.

    Raises:
        ConfigError: with the reason and the samplers that do.
    """
    name, spec = config.sampler, SAMPLERS[config.sampler]
    if spec.package and importlib.util.find_spec(spec.package) is None:
        raise ConfigError(f"sampler = {name}: requires the package {spec.package}; pip install {spec.package}")
    if len(config.goals) > 1 and not spec.several_goals:
        raise ConfigError(
            f"sampler = {name}: supports one goal, not {', '.join(config.goals)}; {_others('several_goals')}"
        )
    if config.constraints and not spec.constraints:
        raise ConfigError(f"sampler = {name}: does not support constraints; {_others('constraints')}")
    if not spec.categorical and all(dimension.choices for dimension in space.dimensions):
        raise ConfigError(f"sampler = {name}: requires a searched range, not only choices; {_others('categorical')}")


def make_sampler(config: SweepConfig, number: int) -> samplers.BaseSampler:
    """Make the sampler of one trial."""
    digest = hashlib.sha256(f"{config.seed}/{number}".encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[config.sampler].make(config, int.from_bytes(digest[:4], "big"))


def _others(ability: str) -> str:
    return f"choose one of {', '.join(name for name, spec in SAMPLERS.items() if getattr(spec, ability))}"
