"""Configuration of the network."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from soflow.config_base import Section, one_of
from soflow.networks.registry import NETWORKS


class NetworkConfig(Section):
    name: str = "DiT-XXS/4"
    """Backbone: DiT-<size>/<patch> (XXS, XS for small images; S, B, M, L, XL as published), U-Net or U-Net-XS."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability inside a U-Net (0.3 in the CIFAR-10 experiments)."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass instead of storing activations: less memory, about 1/3 slower."""

    _name = field_validator("name")(one_of(NETWORKS))
