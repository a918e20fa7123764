"""Small networks, with which tests that train take little time."""

from __future__ import annotations

from soflow.networks.dit import DiT


def one_block(
    image_size: int, channels: int, num_classes: int, gradient_checkpointing: bool = False, width: int = 32
) -> DiT:
    """DiT with one block; a patch covers a quarter of an image of the digits."""
    size = {"patch": 4, "width": width, "depth": 1, "heads": 2}
    return DiT(image_size, channels, num_classes, **size, gradient_checkpointing=gradient_checkpointing)


def one_wide_block(image_size: int, channels: int, num_classes: int) -> DiT:
    """The same with other shapes."""
    return one_block(image_size, channels, num_classes, width=48)


one_block.side_multiple = one_wide_block.side_multiple = 4
