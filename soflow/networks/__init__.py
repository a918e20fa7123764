"""Backbones F_θ(x, t, s, y): one file per family, plus its sizes here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from soflow.config import RunConfig


@dataclass(frozen=True)
class NetworkSpec:
    """One network by name: the module whose `build` makes it, and that function's size arguments."""

    module: str
    patch: int
    """Pixels by which the image side must be divisible."""
    size: dict[str, Any] = field(default_factory=dict)


# (hidden width, depth, heads): S to XL as published (arXiv 2212.09748, M in 2505.13447), the rest for small images.
DIT_SIZES = {
    "XXS": (64, 4, 4),
    "XS": (128, 6, 4),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "M": (1024, 16, 16),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}

NETWORKS = {
    f"DiT-{name}/{patch}": NetworkSpec(
        "soflow.networks.dit", patch, {"patch": patch, "width": width, "depth": depth, "heads": heads}
    )
    for name, (width, depth, heads) in DIT_SIZES.items()
    for patch in (1, 2, 4)
}


def build(config: RunConfig, num_classes: int) -> nn.Module:
    """The configured network for the configured images; label `num_classes` is the null label."""
    spec = NETWORKS[config.network.name]
    channels, side, _ = config.dataset.image_shape
    module = importlib.import_module(spec.module)
    return module.build(image_size=side, channels=channels, num_classes=num_classes, **spec.size)
