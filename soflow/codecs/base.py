"""Interface between stored samples, network inputs and pixels."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

TORCH_FIDELITY = "torch-fidelity"
ROUNDING = {
    TORCH_FIDELITY: lambda levels: levels.round(),
    "adm": lambda levels: levels.floor(),
    "jax": lambda levels: (levels + 0.5).floor(),
}
"""From a level in 0...255 to a whole one, by FID protocol: to the nearest; downward, as guided-diffusion saves its
samples; to the nearest and up from the middle, as DiT and MeanFlow's JAX code do."""


def to_uint8(pixels: Tensor, protocol: str = TORCH_FIDELITY) -> Tensor:
    """Convert pixels in [−1, 1] to uint8 in 0...255; clamp values outside and map NaN to 0."""
    levels = (pixels.nan_to_num(-1) + 1) * 127.5
    return ROUNDING[protocol](levels).clamp(0, 255).to(torch.uint8)


class Codec(Protocol):
    """Conversion from stored samples to network inputs, and from network outputs to pixels."""

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Convert stored samples [B, ...] to training samples, float32 [B, *sample_shape].

        Args:
            noise: standard normal [B, *sample_shape] for latents, which are stored as mean and standard deviation; None
                uses the mean.
        """
        ...

    def pixels(self, samples: Tensor) -> Tensor:
        """Convert generated samples [B, *sample_shape] to pixels [B, *image_shape], roughly in [−1, 1]."""
        ...

    def decode(self, samples: Tensor) -> Tensor:
        """Convert generated samples [B, *sample_shape] to uint8 images [B, *image_shape]."""
        return to_uint8(self.pixels(samples))

    def images(self, stored: Tensor) -> Tensor:
        """Convert stored samples to uint8 images [B, *image_shape], the reference of the evaluation."""
        ...
