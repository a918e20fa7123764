"""Small networks, with which tests that train take little time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.networks.dit import DiT


def one_block(image_size: int, channels: int, num_classes: int, gradient_checkpointing: bool = False) -> DiT:
    """DiT with one block; a patch covers a quarter of an image of the digits."""
    size = {"patch": 4, "width": 32, "depth": 1, "heads": 2}
    return DiT(image_size, channels, num_classes, **size, gradient_checkpointing=gradient_checkpointing)


one_block.side_multiple = 4


class Perceptron(nn.Module):
    """One hidden layer: a few kernels, each of which a C++ compiler takes seconds for."""

    def __init__(self, image_size: int, channels: int, num_classes: int):
        super().__init__()
        pixels = channels * image_size**2
        self.first, self.last = nn.Linear(pixels + 2, 32), nn.Linear(32, pixels)
        self.label = nn.Embedding(num_classes + 1, 32)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        hidden = self.first(torch.cat([x.flatten(1), torch.stack([t, t - s], 1)], 1)) + self.label(labels)
        return self.last(nn.functional.silu(hidden)).view_as(x)
