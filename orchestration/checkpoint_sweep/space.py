"""The points of a checkpoint sweep: a grid, or what Optuna suggests; each point in one form only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestration.checkpoint_sweep.config import CheckpointSweepConfig, Point, direction
from soflow.config import RunConfig
from soflow.evaluation.generated import sampler_for
from soflow.objectives.base import Objective
from soflow.posthoc_ema import TRAINED, average_of
from soflow.sampling import even_times

LENGTHS = ("0.05", "0.1", "0.15", "0.2", "0.25")
"""Default lengths of the averages that are made from snapshots."""
GUIDANCE = (1.0, 1.25, 1.5, 2.0)
"""Default strengths of guidance."""


@dataclass(frozen=True)
class Space:
    """Values of every dimension, with the defaults of the checkpoint filled in."""

    defaults: tuple[Point, ...]
    """For each number of steps, the point that samples as the training's evaluation does."""
    ema: tuple[str, ...]
    guidance: tuple[float, ...]
    guidance_interval: tuple[tuple[float, float], ...]
    sampler: tuple[str, ...]
    nfe: tuple[int, ...]
    times: tuple[tuple[float, ...], ...]
    temperature: tuple[float, ...]
    seed: int

    def grid(self) -> list[Point]:
        """List the defaults and all combinations, an average after the other, as changing it costs most."""
        points = dict.fromkeys(self.defaults)
        for ema, nfe, sampler, guidance, interval, temperature in itertools.product(
            self.ema, self.nfe, self.sampler, self.guidance, self.guidance_interval, self.temperature
        ):
            for times in ((), *(times for times in self.times if len(times) == nfe - 1)):
                values = {"ema": ema, "nfe": nfe, "sampler": sampler, "times": times, "guidance": guidance}
                points[self._canonical(**values, guidance_interval=interval, temperature=temperature)] = None
        return sorted(points, key=lambda point: ((TRAINED, *self.ema).index(point.ema), point.nfe))

    def suggest(self, done: Sequence[tuple[Point, dict[str, float]]], goals: Sequence[str], number: int) -> Point:
        """Let Optuna choose the next point.

        Args:
            done: measured points with their metrics.
            number: of the point; the choice depends on it, on the seed and on `done` only.
        """
        import optuna

        sampler = optuna.samplers.TPESampler(seed=self.seed * 1_000_003 + number)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(directions=[direction(goal) for goal in goals], sampler=sampler)
        distributions = self._distributions()
        for point, metrics in done:
            params = self._params(point, distributions)
            if all(goal in metrics for goal in goals):
                values = [metrics[goal] for goal in goals]
                with suppress(ValueError):  # a point outside the space
                    study.add_trial(
                        optuna.trial.create_trial(params=params, distributions=distributions, values=values)
                    )
        return self._point(study.ask(distributions).params)

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        lengths, others = self._lengths()
        found: dict[str, Any] = {"average": CategoricalDistribution((*others, *(["length"] if lengths else [])))}
        ranges = {"length": lengths, "guidance": self.guidance, "temperature": self.temperature}
        for name, values in ranges.items():
            if values:
                found[name] = FloatDistribution(min(values), max(values))
        choices: dict[str, Sequence[Any]] = {
            "nfe": self.nfe,
            "sampler": self.sampler,
            "guidance_interval": [f"{low},{high}" for low, high in self.guidance_interval],
        }
        found |= {name: CategoricalDistribution(tuple(values)) for name, values in choices.items()}
        for nfe in {len(times) + 1 for times in self.times}:
            found[f"times_{nfe}"] = CategoricalDistribution(
                ("equal", *(_text(times) for times in self.times if len(times) == nfe - 1))
            )
        return found

    def _lengths(self) -> tuple[list[float], list[str]]:
        """Split the averages into relative lengths, and names of others."""
        averages = {text: average_of(text) for text in self.ema}
        lengths = [average.length for average in averages.values() if average and average.length is not None]
        return lengths, [text for text, average in averages.items() if average is None or average.length is None]

    def _params(self, point: Point, distributions: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of a point in Optuna's study, which may lie outside the space."""
        average = average_of(point.ema)
        length = average.length if average else None
        params: dict[str, Any] = {
            "average": point.ema if length is None else "length",
            "length": length,
            "guidance": point.guidance,
            "temperature": point.temperature,
            "nfe": point.nfe,
            "sampler": point.sampler if point.sampler in self.sampler else self.sampler[0],
            # Without guidance, its interval has no effect.
            "guidance_interval": None if point.guidance == 1 else ",".join(map(str, point.guidance_interval)),
        }
        for name, distribution in distributions.items():
            if name.startswith("times_"):
                params[name] = _text(point.times) if name == f"times_{point.nfe}" else "equal"
            if params.get(name) is None:  # has no effect on this point
                params[name] = distribution.choices[0] if hasattr(distribution, "choices") else distribution.low
        return {name: params[name] for name in distributions}

    def _point(self, params: dict[str, Any]) -> Point:
        low, high = map(float, params["guidance_interval"].split(","))
        times = params.get(f"times_{params['nfe']}", "equal")
        return self._canonical(
            ema=f"{params['length']:.4g}" if params["average"] == "length" else params["average"],
            nfe=params["nfe"],
            sampler=params["sampler"],
            times=() if times == "equal" else tuple(map(float, times.split(","))),
            guidance=round(params["guidance"], 4),
            guidance_interval=(low, high),
            temperature=round(params["temperature"], 4),
        )

    def _canonical(self, **values: Any) -> Point:
        return canonical(Point(**{"seed": self.seed} | values))


def canonical(point: Point) -> Point:
    """Return the point with every value that has no effect set to its default."""
    changes: dict[str, Any] = {}
    if point.nfe == 1:
        changes["sampler"] = "compose"
    if point.sampler == "heun" or len(point.times) != point.nfe - 1:
        changes["times"] = ()
    point = point.model_copy(update=changes)
    low, high = point.guidance_interval
    if point.guidance == 1 or not any(low <= t <= high for t in _visited(point)):
        return point.model_copy(update={"guidance": 1.0, "guidance_interval": (0.0, 1.0)})
    return point


def _visited(point: Point) -> tuple[float, ...]:
    """Return the times t at which a point evaluates the network."""
    if point.sampler == "heun" and point.nfe > 1:
        steps = point.nfe // 2
        return tuple(1 - i / steps for i in range(steps + 1))
    return (1.0, *(point.times or even_times(point.nfe)))


def _text(times: Sequence[float]) -> str:
    return ",".join(map(str, times)) or "equal"


def space_of(config: CheckpointSweepConfig, run: RunConfig, objective: Objective, lengths: Sequence[str]) -> Space:
    """Fill in the defaults of a checkpoint.

    Args:
        run: configuration of its training run.
        objective: its objective.
        lengths: default lengths of averages that its snapshots can give.
    """
    evaluation = run.evaluation
    sampling = {name: getattr(evaluation, name) for name in ("times", "temperature", "guidance", "guidance_interval")}
    defaults = [
        canonical(Point(nfe=nfe, sampler=sampler_for(run, objective, nfe), seed=config.seed, **sampling))
        for nfe in config.nfe
    ]
    guidable = run.dataset.conditional and getattr(run.objective, "label_drop", 1) > 0
    return Space(
        tuple(defaults),
        config.ema or (TRAINED, *lengths),
        config.guidance or (tuple(dict.fromkeys((evaluation.guidance, *GUIDANCE))) if guidable else (1.0,)),
        config.guidance_interval,
        config.sampler or (evaluation.sampler or objective.default_sampler,),
        config.nfe,
        config.times,
        config.temperature,
        config.seed,
    )
