"""A small network, with which tests that train take little time."""

from __future__ import annotations

from soflow.networks.dit import DiT


def one_block(image_size: int, channels: int, num_classes: int, gradient_checkpointing: bool = False) -> DiT:
    """DiT with one block; a patch covers a quarter of an image of the digits."""
    size = {"patch": 4, "width": 32, "depth": 1, "heads": 2}
    return DiT(image_size, channels, num_classes, **size, gradient_checkpointing=gradient_checkpointing)


one_block.side_multiple = 4
