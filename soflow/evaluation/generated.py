"""Generate the images of an evaluation: each worker generates its share batch by batch, so none stores all images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from soflow.codecs.base import Codec
from soflow.config import RunConfig
from soflow.evaluation.fidelity import Batch
from soflow.evaluation.moments import Workers
from soflow.objectives.base import Objective, normal
from soflow.randomness import generator
from soflow.sampling import sample


def evaluation_nfe(config: RunConfig, objective: Objective) -> tuple[int, ...]:
    """Return the NFE values to evaluate; the metrics of the first have no suffix."""
    return config.evaluation.nfe or objective.default_nfe


def sampler_for(config: RunConfig, objective: Objective, nfe: int) -> str:
    """Return the sampler for an NFE. At NFE 1 all samplers make the same jump, and "compose" is the simplest."""
    return "compose" if nfe == 1 else config.evaluation.sampler or objective.default_sampler


def generate(
    objective: Objective,
    network: nn.Module,
    codec: Codec,
    config: RunConfig,
    nfe: int,
    sampler: str,
    workers: Workers,
) -> Iterator[Batch]:
    """Generate this worker's share of the evaluation's `num_samples` images, balanced over classes.

    Workers take batches in turn, and each batch has a separate noise seed. The images therefore do not depend on the
    number of workers.
    """
    device, conditional = workers.device, config.dataset.conditional
    total, size = config.evaluation.num_samples, config.evaluation.batch_size
    for i in range(workers.rank, -(-total // size), workers.size):
        places = torch.arange(i * size, min((i + 1) * size, total), device=device)
        labels = places % objective.num_classes
        network_labels = labels if conditional else torch.full_like(labels, objective.num_classes)
        random = generator(device, config.seed, "evaluation", i)
        noise = normal((len(places), *config.dataset.sample_shape), random)
        samples = sample(objective, network, noise, network_labels, nfe, sampler, random)
        yield Batch(places, codec.decode(samples), labels if conditional else None)
