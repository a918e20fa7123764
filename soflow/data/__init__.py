"""Data sources: one file each, plus an entry here.

A source holds uint8 images and integer labels and hands out batches by index as numpy arrays; it knows nothing of
torch, so that a wrong path is reported without waiting for torch's import.
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
        fingerprint: hexadecimal digest that changes whenever the data does.
    """

    num_classes: int
    fingerprint: str

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images [B, C, H, W] as uint8 in 0...255 and labels [B] as int64, for indices [B]."""
        ...


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before it is opened."""

    module: str
    channels: int
    image_size: int | None
    """Side in pixels, None where the configuration decides."""
    feature_network: str
    """FID features used unless the configuration names others."""


SOURCES = {
    "digits": SourceInfo("soflow.data.digits", 1, 8, "digits-cnn"),
    "fashion_mnist": SourceInfo("soflow.data.fashion_mnist", 1, 28, "fashion-cnn"),
    "image_folder": SourceInfo("soflow.data.image_folder", 3, None, "inception"),
}


def open_source(config: DatasetConfig) -> DataSource:
    """Open the configured data source.

    Raises:
        DataError: if its files are missing or unusable.
    """
    return importlib.import_module(SOURCES[config.name].module).open_source(config)
