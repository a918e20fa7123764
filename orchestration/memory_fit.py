"""Whether a training fits into its workers' memory, found out from a prediction instead of a crash.

A step that is too large for all samples at once is taken in micro-batches, at equal mathematics. Refused is only what
does not fit even with the fewest samples at a time.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from dataclasses import dataclass
from typing import Any

from orchestration.config import LaunchConfig, ResourcesConfig
from orchestration.sweep.search_space import CASE, SearchSpace, trial_config
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError

LOG = logging.getLogger(__name__)

ERROR = 0.10
"""How far off predicted memory may be (tests/test_cost.py); only what exceeds the room by more is sure not to fit."""
SHAPES_MEMORY = ("network.", "dataset.", "training.", CASE)
"""Searched paths that may decide whether a trial fits."""
MOST_POINTS = 8
"""So many extremes of a search space are looked at before a sweep; more take too long."""
FEWEST_SAMPLES = 2
"""Of a predicted step; a configuration may not have fewer."""
GIB = 2**30
GRADIENT_BYTES = 4
"""Of each parameter: gradients are added up in fp32 while the next micro-batch is computed."""


@dataclass(frozen=True)
class Room:
    """Memory that each worker of a sweep or run has."""

    bytes_per_worker: float
    description: str
    """What it is a share of."""


def room(resources: ResourcesConfig, groups: int) -> Room:
    """What each worker of `groups` groups has: its share of a GPU, or of a node; of the largest, if they differ.

    Needs a connection to Ray.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if resources.gpus_per_worker:
        share = min(1.0, resources.gpus_per_worker)
        memory = max(_gpu_bytes())
        return Room(share * memory, f"{share:g} of a GPU of {memory / GIB:.1f} GiB")
    # What Ray found free when it started, the part that it keeps for objects included.
    memory = max(node.get("memory", 0) + node.get("object_store_memory", 0) for node in nodes)
    workers = math.ceil(groups * resources.num_workers / len(nodes))
    return Room(memory / workers, f"a node's {memory / GIB:.1f} GiB for {workers} workers")


def _gpu_bytes() -> list[int]:
    """Memory of a GPU of each node that has any."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, num_gpus=0.01)
    def memory() -> int:
        import torch

        return torch.cuda.get_device_properties(0).total_memory

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    asked = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    return ray.get([memory.options(scheduling_strategy=strategy).remote() for strategy in asked])


def micro_batches_that_fit(config: RunConfig, there: Room, num_workers: int) -> int:
    """In how many parts a worker has to take its samples of a step for it to fit, as far as that can be predicted.

    Takes seconds the first time, next to nothing for another run of the same shapes.

    Raises:
        ConfigError: if the fewest samples at a time do not fit, with the numbers.
    """
    samples = config.training.batch_size // num_workers
    allowed = (1 + ERROR) * there.bytes_per_worker
    if _peak_bytes(config, samples) <= allowed:
        return 1
    if (needed := _peak_bytes(config, FEWEST_SAMPLES, adds_up=True)) > allowed:
        raise ConfigError(
            f"network.name = {config.network.name}: training needs {needed / GIB:.2f} GiB per worker even with "
            f"{FEWEST_SAMPLES} samples at a time (predicted, ± {ERROR:.0%}), available are "
            f"{there.bytes_per_worker / GIB:.2f} GiB ({there.description}); choose a smaller network, "
            "network.gradient_checkpointing, or fewer trainings at a time"
        )
    parts = 2
    while parts < samples and _peak_bytes(config, math.ceil(samples / parts), adds_up=True) > allowed:
        parts = min(2 * parts, samples)
    return parts


def check_room(config: LaunchConfig, there: Room, space: SearchSpace | None = None) -> None:
    """Make sure before anything is trained that a run, or some point of a sweep, fits.

    Raises:
        ConfigError: with the numbers, if it is sure that none does.
    """
    shapes = [d for d in (space.dimensions if space else ()) if d.path.startswith(SHAPES_MEMORY)]
    points = [dict(zip([d.path for d in shapes], values, strict=True)) for values in _extremes(shapes)]
    refusals = []
    for point in points[: MOST_POINTS + 1]:
        try:
            tried = trial_config(config.run, point, getattr(config, "cases", ()))
            micro_batches_that_fit(tried, there, config.resources.num_workers)
            return
        except ConfigError as refusal:
            refusals.append(refusal)
    if len(refusals) == len(points):
        raise refusals[0]


def _extremes(dimensions: list) -> list[tuple[Any, ...]]:
    return list(itertools.product(*(dimension.extremes for dimension in dimensions)))


def _peak_bytes(config: RunConfig, samples: int, adds_up: bool = False) -> float:
    """Predicted memory of a worker that takes so many samples at a time, adding up their gradients or not.

    0 if there is no saying.
    """
    values = override(to_dict(config), {"training.batch_size": max(FEWEST_SAMPLES, samples)})
    key = json.dumps(_shapes({name: values[name] for name in SECTIONS}))
    if key not in _predicted:
        _predicted[key] = _predict(values)
    peak_bytes, parameters = _predicted[key]
    return peak_bytes + (GRADIENT_BYTES * parameters if adds_up else 0)


SECTIONS = ("dataset", "network", "objective", "optimizer", "training")
SHAPELESS = {"total_steps", "report_every", "loading_processes", "augmentation", "warmup_steps"}
"""Numbers without influence on the memory of a step."""
_predicted: dict[str, tuple[int, int]] = {}
"""Peak bytes and parameters by what they depend on, in this process."""


def _shapes(value: Any) -> Any:
    """Configuration values as far as shapes depend on them: of numbers with fractions, whether they are 0 or 1."""
    if isinstance(value, dict):
        return {key: _shapes(inner) for key, inner in value.items() if key not in SHAPELESS}
    return "other" if isinstance(value, float) and value not in (0, 1) else value


def _predict(values: dict[str, Any]) -> tuple[int, int]:
    from soflow.cost.predict import predict

    try:
        prediction = predict(parse(values))
    except Exception as error:  # a run is not to fail because its cost cannot be told
        LOG.warning("memory of a step cannot be predicted (%s: %s); it is tried instead", type(error).__name__, error)
        return 0, 0
    return prediction.peak_bytes, prediction.parameters
