"""Images stored as pixels."""

from __future__ import annotations

from torch import Tensor

from soflow.codecs.base import Codec


class Pixels(Codec):
    """Codec of uint8 pixels in 0...255; network inputs are in [−1, 1]."""

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        return stored.float() / 127.5 - 1

    def pixels(self, samples: Tensor) -> Tensor:
        return samples

    def images(self, stored: Tensor) -> Tensor:
        return stored
