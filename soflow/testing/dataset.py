"""Checks of a dataset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from soflow import data
from soflow.config import RunConfig
from soflow.testing.resume import resume_is_exact


def batches_are_images(config: RunConfig) -> None:
    source, shape = data.open_source(config.dataset), config.dataset.image_shape
    if config.dataset.latent:
        return
    images, labels = source.batch(np.array([0, len(source) - 1, 0]))
    assert images.dtype == np.uint8, f"images must be uint8, not {images.dtype}"
    assert images.shape == (3, *shape), f"batch of 3 must have shape {(3, *shape)}, not {images.shape}"
    assert labels.dtype == np.int64, f"labels must be int64, not {labels.dtype}"
    assert np.array_equal(images[0], images[2]), "the same index must give the same image"


def labels_are_in_range(config: RunConfig) -> None:
    source = data.open_source(config.dataset)
    low, high = source.labels.min(), source.labels.max()
    assert len(source.labels) == len(source), f"{len(source.labels)} labels for {len(source)} samples"
    assert low >= 0, f"labels must not be negative, but one is {low}"
    assert high < source.num_classes, f"labels must be below num_classes = {source.num_classes}, but one is {high}"
    indices = np.arange(min(len(source), 100))
    assert np.array_equal(source.batch(indices)[1], source.labels[indices]), "batch and labels disagree"


def fingerprint_repeats(config: RunConfig) -> None:
    first, second = data.open_source(config.dataset), data.open_source(config.dataset)
    assert first.fingerprint == second.fingerprint, "two openings of the same data must have the same fingerprint"
    assert len(first.fingerprint) >= 12, "the fingerprint must have 12 hexadecimal digits or more"


DATASET: dict[str, Callable[[RunConfig], None]] = {
    "batches: uint8 images of the declared shape": batches_are_images,
    "labels: whole numbers from 0 to num_classes - 1": labels_are_in_range,
    "fingerprint: a function of the data": fingerprint_repeats,
    "training: a resumed run equals an undisturbed one": resume_is_exact,
}
