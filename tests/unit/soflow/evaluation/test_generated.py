"""Images of an evaluation: their noise and their labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import CPU, tiny_config

from soflow import codecs
from soflow.config_base import ConfigError
from soflow.evaluation.generated import check_times, evaluation_labels, generate
from soflow.evaluation.moments import Workers
from soflow.training.build import build_network, build_objective

COUNTS = [5, 0, 1, 14, 20, 3, 7, 100, 2, 8]


def images(batch_size: int, sampler: str, labels: str = "balanced") -> dict[str, torch.Tensor]:
    config = tiny_config(evaluation={"num_samples": 23, "batch_size": batch_size, "labels": labels})
    objective, codec = build_objective(config, 10), codecs.build(config.dataset, CPU)
    network, random = build_network(config, 10), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in network.parameters():  # a fresh network's output is zero
            weights += 0.1 * torch.randn(weights.shape, generator=random)
    batches = list(generate(objective, network.eval(), codec, config, 4, sampler, Workers(CPU), COUNTS))
    assert [len(batch.images) for batch in batches][:-1] == [batch_size] * (len(batches) - 1)
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in ("places", "labels", "images")}


@pytest.mark.parametrize("sampler", ["renoise", "compose", "heun"])
def test_images_do_not_depend_on_the_batch_size(sampler):
    whole = images(23, sampler)
    assert len({image.numpy().tobytes() for image in whole["images"]}) == 23  # each has noise of its own
    for size in (1, 5, 22):
        parts = images(size, sampler)
        assert torch.equal(parts["places"], whole["places"])
        assert torch.equal(parts["labels"], whole["labels"])
        # Sums over another batch may be rounded differently, and so a gray level.
        assert (parts["images"].int() - whole["images"].int()).abs().max() <= 1


def test_times_of_steps_that_are_not_evaluated_are_refused():
    """The default of 1 and 2 NFE depends on the objective, so the configuration alone cannot tell."""
    objective = build_objective(tiny_config(), 10)
    check_times(tiny_config(evaluation={"times": [0.3]}), objective)
    with pytest.raises(ConfigError, match=r"times = \[0.8, 0.5\]: are for 3 NFE, and 1, 2 NFE are evaluated; list"):
        check_times(tiny_config(evaluation={"times": [0.8, 0.5]}), objective)


def test_labels_are_balanced_or_as_in_the_data():
    assert images(10, "compose")["labels"].tolist() == [place % 10 for place in range(23)]
    found = np.bincount(images(10, "compose", "data")["labels"], minlength=10)
    assert np.abs(found - 23 * np.array(COUNTS) / sum(COUNTS)).max() <= 1


@pytest.mark.parametrize("num_samples", [160, 1600, 997])
def test_labels_keep_the_proportions_of_the_data(num_samples):
    labels = evaluation_labels(num_samples, COUNTS)
    expected = num_samples * np.array(COUNTS) / sum(COUNTS)
    found = np.bincount(labels, minlength=10)
    # Each class gets the midpoints that lie in its interval, whose number is its length up to one.
    assert np.abs(found - expected).max() <= 1
    if num_samples % sum(COUNTS) == 0:
        assert found.tolist() == expected.tolist()
    # KID, precision and recall use leading images only: the order must not be by class.
    half = np.bincount(labels[: num_samples // 2], minlength=10)
    # Hypergeometric: standard deviation below √(n p / 4) for each class; six of them.
    assert (np.abs(half - expected / 2) <= 1 + 6 * np.sqrt(expected / 4)).all()
