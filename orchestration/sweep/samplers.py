"""How the next configuration is chosen: Optuna's samplers by name, and what each of them can serve.

A sampler is made anew for every trial, seeded by the sweep's seed and the trial's number. What it suggests then depends
on nothing but these and the study, so that a resumed sweep suggests what an undisturbed one would have.
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
    """One sampler by name."""

    make: Callable[[SweepConfig, int], samplers.BaseSampler]
    """From the sweep and a seed for one trial."""
    several_goals: bool = True
    constraints: bool = True
    """Whether constraints are heeded; a sampler that learns from no result may ignore them as well."""
    categorical: bool = True
    """Whether choices are searched; otherwise they are drawn at random."""
    package: str | None = None
    """What must be installed beside this project's own requirements."""


def _tpe(config: SweepConfig, seed: int) -> samplers.BaseSampler:
    # `group` keeps dimensions together that are used together; the liar keeps trials at a time apart.
    return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=config.max_concurrent > 1)


def _gp(config: SweepConfig, seed: int) -> samplers.BaseSampler:
    return samplers.GPSampler(seed=seed, warn_independent_sampling=False)


def _cmaes(config: SweepConfig, seed: int) -> samplers.BaseSampler:
    return samplers.CmaEsSampler(
        seed=seed, warn_independent_sampling=False, independent_sampler=samplers.RandomSampler(seed)
    )


def _qmc(config: SweepConfig, seed: int) -> samplers.BaseSampler:
    # The scrambling is the sweep's, the same for all its trials; what Sobol's sequence does not cover is the trial's.
    return samplers.QMCSampler(
        scramble=True,
        seed=config.seed,
        independent_sampler=samplers.RandomSampler(seed),
        warn_independent_sampling=False,
    )


def _population(config: SweepConfig) -> int:
    """A population that leaves five generations to a small sweep, Optuna's 50 to a large one."""
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
    """Make sure that the configured sampler can serve.

    Raises:
        ConfigError: saying why it cannot and what could.
    """
    name, spec = config.sampler, SAMPLERS[config.sampler]
    if spec.package and importlib.util.find_spec(spec.package) is None:
        raise ConfigError(f"sampler = {name}: needs the package {spec.package}; pip install {spec.package}")
    if len(config.goals) > 1 and not spec.several_goals:
        raise ConfigError(
            f"sampler = {name}: serves one goal, not {', '.join(config.goals)}; {_others('several_goals')}"
        )
    if config.constraints and not spec.constraints:
        raise ConfigError(f"sampler = {name}: knows no constraints; {_others('constraints')}")
    if not spec.categorical and all(dimension.choices for dimension in space.dimensions):
        raise ConfigError(f"sampler = {name}: needs a searched range, not only choices; {_others('categorical')}")


def make_sampler(config: SweepConfig, number: int) -> samplers.BaseSampler:
    """The sampler for one trial."""
    digest = hashlib.sha256(f"{config.seed}/{number}".encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[config.sampler].make(config, int.from_bytes(digest[:4], "big"))


def _others(ability: str) -> str:
    return f"choose one of {', '.join(name for name, spec in SAMPLERS.items() if getattr(spec, ability))}"
