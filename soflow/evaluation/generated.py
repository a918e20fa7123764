"""A run's own images: each worker generates its share and looks at it at once, so that nobody holds all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from soflow.codecs.pixels import Codec
from soflow.config import RunConfig
from soflow.diagnostics import Subject, diagnose
from soflow.evaluation.fidelity import Batch, Evaluator
from soflow.evaluation.moments import Workers
from soflow.objectives.base import Objective, normal
from soflow.randomness import generator
from soflow.sampling import sample

if TYPE_CHECKING:
    from soflow.training.trainer import Trainer

DIAGNOSED = 512
"""Training samples that diagnostics look at."""


def evaluation_nfe(config: RunConfig, objective: Objective) -> tuple[int, ...]:
    """Numbers of network evaluations to measure at; the metrics of the first have no suffix."""
    return config.evaluation.nfe or objective.default_nfe


def sampler_for(config: RunConfig, objective: Objective, nfe: int) -> str:
    """One evaluation is the same jump for every sampler; "compose" says it without fresh noise or half steps."""
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
    """This worker's share of the evaluation's `num_samples` images, of all classes equally many.

    Whole batches go to workers by turns, each from noise of its own seed: images do not depend on how many workers
    there are.
    """
    device, conditional = workers.device, config.dataset.conditional
    total, size = config.evaluation.num_samples, config.evaluation.batch_size
    for i in range(workers.rank, -(-total // size), workers.size):
        places = torch.arange(i * size, min((i + 1) * size, total), device=device)
        labels = places % objective.num_classes
        given = labels if conditional else torch.full_like(labels, objective.num_classes)
        random = generator(device, config.seed, "evaluation", i)
        noise = normal((len(places), *config.dataset.sample_shape), random)
        samples = sample(objective, network, noise, given, nfe, sampler, random)
        yield Batch(places, codec.decode(samples), labels if conditional else None)


def evaluate(trainer: Trainer, network: nn.Module, evaluator: Evaluator) -> dict[str, float]:
    """Every metric at every configured number of evaluations and, on worker 0, the data's own floor."""
    found = {}
    for i, nfe in enumerate(evaluation_nfe(trainer.config, trainer.objective)):
        sampler = sampler_for(trainer.config, trainer.objective, nfe)
        metrics = evaluator.evaluate(_own_images(trainer, network, evaluator, nfe, sampler))
        found |= {name if i == 0 else f"{name}_{nfe}nfe": value for name, value in metrics.items()}
    return found | evaluator.floor()


def look_closer(trainer: Trainer, network: nn.Module, evaluator: Evaluator) -> dict[str, float]:
    """The configured diagnostics' figures, e.g. "diagnostics/ode_violation/mean", the same on all workers."""
    config, source = trainer.config, trainer.source
    stored, classes = source.batch(np.arange(min(DIAGNOSED, len(source))))
    labels = torch.from_numpy(classes).to(trainer.device)
    subject = Subject(
        objective=trainer.objective,
        network=network,
        data=trainer.codec.encode(torch.from_numpy(stored).to(trainer.device)),
        labels=labels if config.dataset.conditional else torch.full_like(labels, source.num_classes),
        seed=config.seed,
        fid=lambda nfe, sampler, other=network: evaluator.fid(_own_images(trainer, other, evaluator, nfe, sampler)),
        components=getattr(source, "components", None),
    )
    figures = diagnose(config.evaluation.diagnostics, subject)
    return {f"diagnostics/{name}": value for name, value in figures.items()}


def _own_images(trainer: Trainer, network: nn.Module, evaluator: Evaluator, nfe: int, sampler: str) -> Iterator[Batch]:
    return generate(trainer.objective, network, trainer.codec, trainer.config, nfe, sampler, evaluator.workers)
