"""Backbones F_θ(x, t, s, labels)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from soflow.networks.config import NetworkConfig
from soflow.networks.registry import NETWORKS

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
    options = {"dropout": network.dropout} if spec.dropout else {}
    return importlib.import_module(spec.module).build(
        image_size=side,
        channels=channels,
        num_classes=num_classes,
        gradient_checkpointing=network.gradient_checkpointing,
        **options,
        **spec.size,
    )
