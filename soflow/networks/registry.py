"""Registry of the backbones: one module per family, with its sizes here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NetworkSpec:
    """Registered network: the module with its `build` function, and that function's size arguments."""

    module: str
    side_multiple: int
    """Divisor of the side of the network's samples."""
    size: dict[str, Any] = field(default_factory=dict)
    dropout: bool = False
    """True if the network has dropout."""
    augmentation: bool = False
    """True if the network takes augmentation parameters as input."""


# (width, depth, heads): S to XL as published (arXiv 2212.09748; M: arXiv 2505.13447), XXS and XS for small images.
DIT_SIZES = {
    "XXS": (64, 4, 4),
    "XS": (128, 6, 4),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "M": (1024, 16, 16),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}

# U-Net: EDM's DDPM++ for CIFAR-10 (arXiv 2206.00364), with the filter of the SoFlow experiments; XS for small images.
UNET_SIZES: dict[str, tuple[int, dict[str, Any]]] = {
    "U-Net": (
        4,
        {
            "width": 128,
            "multipliers": (2, 2, 2),
            "blocks": 4,
            "attention_sides": (16,),
            "resample_filter": (1, 3, 3, 1),
        },
    ),
    "U-Net-XS": (2, {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention_sides": (8,)}),
}

NETWORKS = {
    f"DiT-{name}/{patch}": NetworkSpec(
        "soflow.networks.dit", patch, {"patch": patch, "width": width, "depth": depth, "heads": heads}
    )
    for name, (width, depth, heads) in DIT_SIZES.items()
    for patch in (1, 2, 4)
} | {
    name: NetworkSpec("soflow.networks.unet", multiple, size, dropout=True, augmentation=True)
    for name, (multiple, size) in UNET_SIZES.items()
}
