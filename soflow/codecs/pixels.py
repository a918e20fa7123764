"""Images stored as uint8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor


class Pixels:
    """Codec of uint8 pixels in 0...255; network inputs are in [−1, 1]."""

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        return stored.float() / 127.5 - 1

    def decode(self, samples: Tensor) -> Tensor:
        """Convert [−1, 1] to uint8; clamp values outside and map NaN to 0."""
        return ((samples.nan_to_num(-1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def images(self, stored: Tensor) -> Tensor:
        return stored
