"""Interface between stored samples, network inputs and pixels."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """Conversion from stored samples to network inputs, and from network outputs to pixels."""

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Convert stored samples [B, ...] to training samples, float32 [B, *sample_shape].

        Args:
            noise: standard normal [B, *sample_shape] for latents, which are stored as mean and standard deviation; None
                uses the mean.
        """
        ...

    def decode(self, samples: Tensor) -> Tensor:
        """Convert generated samples [B, *sample_shape] to uint8 images [B, *image_shape]."""
        ...

    def images(self, stored: Tensor) -> Tensor:
        """Convert stored samples to uint8 images [B, *image_shape], the reference of the evaluation."""
        ...
