"""Between what a data source stores, what networks see and pixels: one codec per kind of storage."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from soflow.config import DatasetConfig


class Codec(Protocol):
    """The way from stored samples to a network and from a network to pixels."""

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Training samples for a network, float32 [B, *sample_shape], from stored ones [B, ...].

        Args:
            noise: standard normal [B, *sample_shape] for latents, which are stored as mean and standard deviation;
                without it the mean is taken.
        """
        ...

    def decode(self, samples: Tensor) -> Tensor:
        """uint8 images [B, *image_shape] of what a network generated [B, *sample_shape]."""
        ...

    def images(self, stored: Tensor) -> Tensor:
        """uint8 images [B, *image_shape] of stored samples, the reference that evaluation compares with."""
        ...


class Pixels:
    """uint8 pixels in 0...255, which networks see in [−1, 1]."""

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        return stored.float() / 127.5 - 1

    def decode(self, samples: Tensor) -> Tensor:
        """Values outside [−1, 1] are clamped, NaN becomes 0."""
        return ((samples.nan_to_num(-1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def images(self, stored: Tensor) -> Tensor:
        return stored


def build(config: DatasetConfig, device: torch.device) -> Codec:
    """The codec of the configured data source."""
    if not config.latent:
        return Pixels()
    from soflow.codecs.latents import Latents

    return Latents(config.vae, device)
