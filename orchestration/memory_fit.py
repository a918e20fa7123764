"""Predict whether a training fits into the memory of its workers.

A step that does not fit with all samples at once is split into micro-batches, which compute the same gradient. A
training is rejected only if the smallest micro-batch does not fit either.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from orchestration.config import GIB, LaunchConfig, ResourcesConfig
from orchestration.sweep.search_space import SearchSpace
from orchestration.sweep.ticket import trial_config
from orchestration.tracking.schema import CASE
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError

LOG = logging.getLogger(__name__)

ERROR = 0.10
"""Relative error of predicted memory (tests/unit/soflow/cost/test_cost.py); only larger excesses are rejected."""
SHAPES_MEMORY = ("network.", "dataset.", "training.", CASE)
"""Prefixes of searched paths on which the memory of a trial depends."""
MOST_POINTS = 8
"""Extremes of a search space that are checked before a sweep; more would take too long."""
FEWEST_SAMPLES = 2
"""Smallest micro-batch, and the smallest batch that a configuration may have."""
GRADIENT_BYTES = 4
"""Per parameter: gradients accumulate in fp32 while the next micro-batch is computed."""


@dataclass(frozen=True)
class MemoryBudget:
    """Memory of each worker of a sweep or run."""

    bytes_per_worker: float
    description: str
    """Total memory and its division among workers, for messages."""
    predicted: dict[str, tuple[int, int]] = field(default_factory=lambda: _predicted)
    """Predicted peak bytes and parameters, by what they depend on; slots of a sweep get what its start predicted."""


def memory_budget(resources: ResourcesConfig, groups: int) -> MemoryBudget:
    """Compute the share of a GPU, or of a node, of each worker of `groups` groups; of the largest, if they differ.

    Needs a connection to Ray.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if resources.gpus_per_worker:
        share = min(1.0, resources.gpus_per_worker)
        memory = max(_gpu_bytes())
        return MemoryBudget(share * memory, f"{share:g} of a GPU of {memory / GIB:.1f} GiB")
    # Memory that was free when Ray started, including the part reserved for its object store.
    memory = max(node.get("memory", 0) + node.get("object_store_memory", 0) for node in nodes)
    workers = math.ceil(groups * resources.num_workers / len(nodes))
    return MemoryBudget(memory / workers, f"a node's {memory / GIB:.1f} GiB for {workers} workers")


def _gpu_bytes() -> list[int]:
    """Return the memory of one GPU of each node that has any."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, num_gpus=0.01)
    def memory() -> int:
        import torch

        return torch.cuda.get_device_properties(0).total_memory

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    return ray.get([memory.options(scheduling_strategy=strategy).remote() for strategy in strategies])


def micro_batches_that_fit(config: RunConfig, budget: MemoryBudget, num_workers: int) -> int:
    """Predict the number of micro-batches into which a worker must split its samples of a step.

    The first call for given shapes takes seconds; later ones use the cached prediction.

    Raises:
        ConfigError: with the numbers, if the smallest micro-batch does not fit.
    """
    samples = config.training.batch_size // num_workers
    allowed = (1 + ERROR) * budget.bytes_per_worker
    if _peak_bytes(config, samples, budget) <= allowed:
        return 1
    if (required := _peak_bytes(config, FEWEST_SAMPLES, budget, accumulates=True)) > allowed:
        raise ConfigError(
            f"network.name = {config.network.name}: training needs {required / GIB:.2f} GiB per worker even with "
            f"{FEWEST_SAMPLES} samples at a time (predicted, ± {ERROR:.0%}), available are "
            f"{budget.bytes_per_worker / GIB:.2f} GiB ({budget.description}); choose a smaller network, "
            "network.gradient_checkpointing, or fewer trainings at a time"
        )
    count = 2
    while count < samples and _peak_bytes(config, math.ceil(samples / count), budget, True) > allowed:
        count = min(2 * count, samples)
    return count


def check_memory(config: LaunchConfig, budget: MemoryBudget, space: SearchSpace | None = None) -> None:
    """Check that a run, or at least one point of a sweep, fits.

    Raises:
        ConfigError: with the numbers, if it is certain that none fits.
    """
    shapes = [d for d in (space.dimensions if space else ()) if d.path.startswith(SHAPES_MEMORY)]
    points = [dict(zip([d.path for d in shapes], values, strict=True)) for values in _extremes(shapes)]
    refusals = []
    for point in points[: MOST_POINTS + 1]:
        try:
            run = trial_config(config.run, point, getattr(config, "cases", ()))
            micro_batches_that_fit(run, budget, config.resources.num_workers)
            return
        except ConfigError as refusal:
            refusals.append(refusal)
    if len(refusals) == len(points):
        raise refusals[0]


def predict_memory(config: LaunchConfig, space: SearchSpace | None = None) -> None:
    """Predict what `check_memory` compares with a budget, which takes seconds, before the budget is known."""
    with suppress(ConfigError):  # what cannot be trained is refused by check_memory
        check_memory(config, MemoryBudget(math.inf, "any memory"), space)


def _extremes(dimensions: list) -> list[tuple[Any, ...]]:
    return list(itertools.product(*(dimension.extremes for dimension in dimensions)))


def _peak_bytes(config: RunConfig, samples: int, budget: MemoryBudget, accumulates: bool = False) -> float:
    """Predict the memory of a worker with micro-batches of this many samples; 0 if it cannot be predicted.

    Args:
        accumulates: whether gradients of several micro-batches are accumulated.
    """
    values = override(to_dict(config), {"training.batch_size": max(FEWEST_SAMPLES, samples)})
    key = json.dumps(_shapes({name: values[name] for name in SECTIONS}))
    if key not in budget.predicted:
        budget.predicted[key] = _predict(values)
    peak_bytes, parameters = budget.predicted[key]
    return peak_bytes + (GRADIENT_BYTES * parameters if accumulates else 0)


SECTIONS = ("dataset", "network", "objective", "optimizer", "training")
SHAPELESS = {"total_steps", "report_every", "loading_processes", "augmentation", "warmup_steps"}
"""Fields on which the memory of a step does not depend."""
_predicted: dict[str, tuple[int, int]] = {}
"""The predictions of this process."""


def _shapes(value: Any) -> Any:
    """Drop values without influence on memory; of a float, only 0, 1 or "other" matters."""
    if isinstance(value, dict):
        return {key: _shapes(inner) for key, inner in value.items() if key not in SHAPELESS}
    return "other" if isinstance(value, float) and value not in (0, 1) else value


def _predict(values: dict[str, Any]) -> tuple[int, int]:
    from soflow.cost.predict import predict

    try:
        prediction = predict(parse(values))
    except Exception as error:  # a failed prediction must not fail the run
        LOG.warning("memory of a step cannot be predicted (%s: %s); skipping the check", type(error).__name__, error)
        return 0, 0
    return prediction.peak_bytes, prediction.parameters
