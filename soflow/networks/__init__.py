"""Backbones F_θ(x, t, s, labels)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from soflow.networks.config import NetworkConfig
from soflow.networks.registry import NETWORKS
from soflow.plugins import load

if TYPE_CHECKING:
    from torch import nn


def build(network: NetworkConfig, sample_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build the configured network.

    Args:
        sample_shape: (channels, height, width) of the samples that it generates.
        num_classes: number of classes; label `num_classes` is the null label.
    """
    spec = NETWORKS[network.name]
    channels, side, _ = sample_shape
    options: dict[str, Any] = {"dropout": network.dropout} if spec.dropout else {}
    if spec.checkpointing:
        options["gradient_checkpointing"] = network.gradient_checkpointing
    return load(spec.implementation)(
        image_size=side, channels=channels, num_classes=num_classes, **options, **spec.size
    )
