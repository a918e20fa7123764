"""Data sources: one file each, plus an entry here.

A source holds samples and integer labels and hands out batches by index as numpy arrays; it knows nothing of torch,
so that a wrong path is reported without waiting for torch's import.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from soflow.config import DatasetConfig


class DataError(ValueError):
    """A data set that cannot be used; the message names the path and what is expected there."""


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
    """What is known of a source before it is opened."""

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


SOURCES = {
    "digits": SourceInfo("soflow.data.digits", 1, 8, "digits-cnn"),
    "fashion_mnist": SourceInfo("soflow.data.fashion_mnist", 1, 28, "fashion-cnn"),
    "cifar10": SourceInfo("soflow.data.cifar10", 3, 32, "inception"),
    "image_folder": SourceInfo("soflow.data.image_folder", 3, None, "inception"),
    "gaussians": SourceInfo("soflow.data.gaussians", 1, 8, "digits-cnn", closed_form=True),
    "latents": SourceInfo("soflow.data.latents", 3, None, "inception", latent=True),
}


def open_source(config: DatasetConfig) -> DataSource:
    """Open the configured data source.

    Raises:
        DataError: if its files are missing or unusable.
    """
    return importlib.import_module(SOURCES[config.name].module).open_source(config)
