"""The interface between stored samples, what networks see, and pixels."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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
