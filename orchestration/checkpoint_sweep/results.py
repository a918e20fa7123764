"""Measured points of a checkpoint sweep: a file per point, the best of them, and what they gain over the defaults."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from orchestration.checkpoint_sweep.config import Point, badness
from orchestration.checkpoint_sweep.space import Space
from soflow.config import to_dict
from soflow.files import write_atomic
from soflow.posthoc_ema import TRAINED

if TYPE_CHECKING:
    from soflow.statistics import Ratio

POINTS_FOLDER, GRIDS_FOLDER = "points", "grids"
TABLE_FILE = "points.csv"


@dataclass(frozen=True)
class Result:
    """Measured point."""

    number: int
    """Position in the order of measurement."""
    point: Point
    metrics: dict[str, float]
    protocol: dict[str, Any]

    @property
    def evaluations(self) -> float:
        """Network evaluations per image, to two digits after the point."""
        return round(self.metrics["evaluations"], 2)


def key_of(point: Point) -> str:
    """Return the name of a point's files: 12 hexadecimal digits of a hash of its values."""
    return hashlib.sha256(json.dumps(to_dict(point), sort_keys=True).encode()).hexdigest()[:12]


def grid_file(folder: Path, point: Point) -> Path:
    """Return the path of a point's sample grid."""
    return folder / GRIDS_FOLDER / f"{key_of(point)}.png"


def save_result(result: Result, folder: Path) -> None:
    """Write a result into a sweep's folder."""
    values = asdict(result) | {"point": to_dict(result.point)}
    write_atomic(folder / POINTS_FOLDER / f"{key_of(result.point)}.json", json.dumps(values))


def load_results(folder: Path) -> list[Result]:
    """Load all results in the order of measurement; damaged files are left out, so that they are measured again."""
    results = []
    for path in (folder / POINTS_FOLDER).glob("*.json"):
        try:
            values = json.loads(path.read_text())
            results.append(Result(**values | {"point": Point(**values["point"])}))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return sorted(results, key=lambda result: result.number)


def searched(results: Sequence[Result], space: Space) -> list[Result]:
    """Return the results of the search, without those of the comparison on other seeds."""
    return [result for result in results if result.point.seed == space.seed]


def best_by_evaluations(results: Sequence[Result], goal: str) -> dict[float, Result]:
    """Return the best result for each number of network evaluations per image, in ascending order."""
    best: dict[float, Result] = {}
    for result in results:
        value = badness(result.metrics, goal)
        before = best.get(result.evaluations)
        if math.isfinite(value) and (before is None or value < badness(before.metrics, goal)):
            best[result.evaluations] = result
    return dict(sorted(best.items()))


def defaults_by_evaluations(results: Sequence[Result], space: Space) -> dict[float, Result]:
    """Return the training's defaults by their number of network evaluations per image."""
    return {result.evaluations: result for result in results if result.point in space.defaults}


@dataclass(frozen=True)
class Gain:
    """Comparison of a best point with training's defaults, on seeds on which nothing was chosen."""

    evaluations: float
    best: Point
    default: Point | None
    """Point of the defaults with as many evaluations; None if there is none."""
    values: tuple[float, ...]
    """The goal of the best point by seed."""
    default_values: tuple[float, ...]
    ratio: Ratio | None
    """Best over default, paired by seed; None without a default, or if they are the same point."""

    @property
    def decided(self) -> bool:
        """True if the scatter over seeds is known and the interval of the ratio excludes 1."""
        from soflow.statistics import FEWEST_SEEDS

        found = self.ratio
        return found is not None and found.n >= FEWEST_SEEDS and not found.low <= 1 <= found.high


def to_confirm(results: Sequence[Result], space: Space, goal: str) -> dict[float, tuple[Point, Point | None]]:
    """Return for each number of evaluations the best point and the defaults' with as many."""
    defaults = defaults_by_evaluations(results, space)
    return {
        evaluations: (result.point, defaults[evaluations].point if evaluations in defaults else None)
        for evaluations, result in best_by_evaluations(results, goal).items()
    }


def at_seed(point: Point, seed: int) -> Point:
    """Return the point with other noise."""
    return point.model_copy(update={"seed": seed})


def gains(results: Sequence[Result], space: Space, goal: str, seeds: Sequence[int]) -> list[Gain]:
    """Compare the best points with the defaults; those that are not measured on all seeds are left out."""
    from soflow.statistics import paired_ratio

    measured = {result.point: result.metrics.get(goal) for result in results}

    def values(point: Point | None) -> tuple[float, ...]:
        found = [measured.get(at_seed(point, seed)) for seed in seeds] if point else []
        return tuple(value for value in found if value is not None)

    compared = []
    for evaluations, (best, default) in to_confirm(searched(results, space), space, goal).items():
        own, others = values(best), values(default)
        if not seeds or len(own) < len(seeds):
            continue
        pairs = default is not None and default != best and len(others) == len(own) and min(*own, *others) > 0
        ratio = paired_ratio(own, others) if pairs else None
        compared.append(Gain(evaluations, best, default, own, others, ratio))
    return compared


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row per point: its values and metrics."""
    rows = [{"number": result.number, **_shown(result.point), **result.metrics} for result in results]
    return pd.DataFrame(rows)


def _shown(point: Point) -> dict[str, Any]:
    values = to_dict(point)
    for name in ("times", "guidance_interval"):
        values[name] = ",".join(f"{value:g}" for value in values[name])
    return values


def describe(point: Point) -> str:
    """Describe a point in a few words."""
    words = [f"{point.nfe} step{'s' if point.nfe > 1 else ''}"]
    if point.nfe > 1:
        words.append(point.sampler)
    if point.times:
        words.append(f"times {', '.join(f'{time:g}' for time in point.times)}")
    words.append("trained EMA" if point.ema == TRAINED else f"EMA {point.ema}")
    if point.guidance != 1:
        low, high = point.guidance_interval
        inside = "" if (low, high) == (0, 1) else f" in [{low:g}, {high:g}]"
        words.append(f"guidance {point.guidance:g}{inside}")
    if point.temperature != 1:
        words.append(f"temperature {point.temperature:g}")
    return ", ".join(words)
