"""Codecs between stored samples, network inputs and pixels: one per storage format."""

from __future__ import annotations

import torch

from soflow.codecs.base import Codec
from soflow.codecs.latents import Latents
from soflow.codecs.pixels import Pixels
from soflow.data.config import DatasetConfig


def build(config: DatasetConfig, device: torch.device) -> Codec:
    """Build the codec of the configured data source."""
    return Latents(config.vae, device) if config.latent else Pixels()
