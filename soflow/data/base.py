"""Interface of the data sources. It does not import torch, so that a wrong path is reported immediately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

LATENT_CHANNELS, LATENT_FACTOR = 4, 8
"""Stable Diffusion's autoencoder: channels of a latent, and side of the image divided by side of the latent."""


class DataError(ValueError):
    """Unusable dataset; the message names the path and the expected content."""


class DataSource(Protocol):
    """Images with labels.

    Attributes:
        num_classes: labels run from 0 to num_classes - 1.
        labels: labels of all samples, int64 [N].
        fingerprint: hexadecimal digest that changes whenever the data changes.
    """

    num_classes: int
    labels: np.ndarray
    fingerprint: str

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read stored samples [B, C, H, W] and int64 labels [B] at indices [B].

        Samples are uint8 images in 0...255, or the format that the source's codec (soflow.codecs) stores.
        """
        ...


def class_counts(source: DataSource) -> list[int]:
    """Count the samples of each class."""
    return np.bincount(source.labels, minlength=source.num_classes).tolist()


@dataclass(frozen=True)
class SourceInfo:
    """Properties of a source that are known without opening it."""

    implementation: str
    """Class or function that opens it, "package.module:name"."""
    channels: int
    """Channels of the images in pixel space."""
    image_size: int | None
    """Side of the images in pixels; None if set by the configuration."""
    feature_network: str
    """Default feature network for FID."""
    num_classes: int
    """Number of classes; where the data decide it, the one that costs are predicted with: ImageNet's."""
    latent: bool = False
    """True if the source stores latents of a Stable Diffusion autoencoder instead of images."""
    closed_form: bool = False
    """True if the source has `components`, the Gaussians of its distribution."""
