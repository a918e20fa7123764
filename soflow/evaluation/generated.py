"""Generate the images of an evaluation: each worker generates its share batch by batch, so none stores all images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from soflow.codecs.base import Codec, to_uint8
from soflow.config import RunConfig
from soflow.config_base import ConfigError
from soflow.evaluation.fidelity import Batch
from soflow.evaluation.moments import Workers
from soflow.objectives.base import Objective, normal
from soflow.randomness import generator
from soflow.sampling import SamplingOptions, sample


def evaluation_nfe(config: RunConfig, objective: Objective | type[Objective]) -> tuple[int, ...]:
    """Return the NFE values to evaluate; the metrics of the first have no suffix."""
    return config.evaluation.nfe or objective.default_nfe


def check_times(config: RunConfig, objective: Objective | type[Objective]) -> None:
    """Check that evaluation.times are for one of the NFE values to evaluate.

    Raises:
        ConfigError: naming these values.
    """
    all_nfe, times = evaluation_nfe(config, objective), config.evaluation.times
    if times and len(times) + 1 not in all_nfe:
        raise ConfigError(
            f"evaluation.times = {list(times)}: are for {len(times) + 1} NFE, and {', '.join(map(str, all_nfe))} NFE "
            "are evaluated; list it in evaluation.nfe"
        )


def sampler_for(config: RunConfig, objective: Objective, nfe: int) -> str:
    """Return the sampler for an NFE. At NFE 1 all samplers make the same jump, and "compose" is the simplest."""
    return "compose" if nfe == 1 else config.evaluation.sampler or objective.default_sampler


def sampling_options(config: RunConfig) -> SamplingOptions:
    """Return what the configuration says of sampling besides the sampler."""
    evaluation = config.evaluation
    return SamplingOptions(evaluation.times, evaluation.temperature, evaluation.guidance, evaluation.guidance_interval)


def by_nfe(metrics: dict[str, float], nfe: int, first: int) -> dict[str, float]:
    """Name the metrics of an NFE: without a suffix for the first NFE of the evaluation, else `fid_4nfe`."""
    return metrics if nfe == first else {f"{name}_{nfe}nfe": value for name, value in metrics.items()}


def generate(
    objective: Objective,
    network: nn.Module,
    codec: Codec,
    config: RunConfig,
    nfe: int,
    sampler: str,
    workers: Workers,
    class_counts: Sequence[int],
    also: Sequence[str] = (),
    places: Tensor | None = None,
) -> Iterator[Batch]:
    """Generate this worker's share of the evaluation's `num_samples` images; workers take batches in turn.

    Each image has a noise seed of its own, so neither the number of workers nor the size of the batches changes it.

    Args:
        class_counts: number of the data's images in each class.
        also: further FID protocols, in whose rounding the batches contain the same images as well.
        places: indices of the images to generate in place of this worker's share.
    """
    device, conditional = workers.device, config.dataset.conditional
    total, size = config.evaluation.num_samples, config.evaluation.batch_size
    classes, options = _labels(config, class_counts).to(device), sampling_options(config)
    begins = range(workers.rank * size, total, workers.size * size)
    own = [torch.arange(begin, min(begin + size, total)) for begin in begins]
    for part in own if places is None else places.split(size):
        part = part.to(device)
        labels = classes[part]
        network_labels = labels if conditional else torch.full_like(labels, objective.num_classes)
        fresh = _noise(config, part.tolist(), device)
        samples = sample(objective, network, next(fresh), network_labels, nfe, sampler, fresh, options)
        pixels = codec.pixels(samples)
        rounded = [to_uint8(pixels, protocol) for protocol in (config.evaluation.protocol, *also)]
        yield Batch(part, rounded[0], labels if conditional else None, tuple(rounded[1:]))


def _labels(config: RunConfig, class_counts: Sequence[int]) -> Tensor:
    """Return the classes of all images of an evaluation, [num_samples]."""
    evaluation = config.evaluation
    if evaluation.labels == "random":
        drawn = generator(torch.device("cpu"), config.seed, "labels")
        return torch.randint(len(class_counts), (evaluation.num_samples,), generator=drawn)
    counts = [1] * len(class_counts) if evaluation.labels == "balanced" else class_counts
    return evaluation_labels(evaluation.num_samples, counts)


def evaluation_labels(num_samples: int, class_counts: Sequence[int]) -> Tensor:
    """Return labels [num_samples], int64, in the proportions of `class_counts`, to within one image of each class.

    Equal counts give 0, 1, … in turn. Others are shuffled with a fixed seed, so that every leading part is mixed, too.
    """
    if len(set(class_counts)) == 1:
        return torch.arange(num_samples) % len(class_counts)
    ends = np.cumsum(class_counts)
    labels = np.searchsorted(ends, (np.arange(num_samples) + 0.5) * ends[-1] / num_samples, side="right")
    return torch.from_numpy(np.random.default_rng(0).permutation(labels))


def _noise(config: RunConfig, places: list[int], device: torch.device) -> Iterator[Tensor]:
    """Yield standard normal tensors [B, C, H, W] without end; each row depends on the seed and its place only."""
    generators = [generator(device, config.seed, "evaluation", place) for place in places]
    while True:
        yield torch.stack([normal(config.dataset.sample_shape, generator) for generator in generators])
