"""The interface of data sources, free of torch so that a wrong path is reported without waiting for its import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

LATENT_CHANNELS, LATENT_FACTOR = 4, 8
"""Stable Diffusion's autoencoder: channels of a latent, and pixels per latent side."""


class DataError(ValueError):
    """A data set that cannot be used. The message names the path and what is expected at it."""


class DataSource(Protocol):
    """Images with labels.

    Attributes:
        num_classes: labels run from 0 to num_classes - 1.
        labels: of all samples, int64 [N].
        fingerprint: hexadecimal digest that changes whenever the data does.
    """

    num_classes: int
    labels: np.ndarray
    fingerprint: str

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored samples [B, C, H, W] and labels [B] as int64, for indices [B].

        Samples are uint8 images in 0...255, or what the source's codec (soflow.codecs) makes of images.
        """
        ...


@dataclass(frozen=True)
class SourceInfo:
    """What can be said about a source without opening it."""

    module: str
    channels: int
    """Of its images, in pixels."""
    image_size: int | None
    """Side in pixels, None where the configuration decides."""
    feature_network: str
    """FID features used unless the configuration names others."""
    latent: bool = False
    """Whether it holds latents of a Stable Diffusion autoencoder in place of images."""
    closed_form: bool = False
    """Whether it has `components`, the Gaussians that its samples are drawn from."""
