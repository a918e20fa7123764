"""Registry of the backbones: one module per family, with its sizes here.

A plug-in is a class or function `(image_size, channels, num_classes) → nn.Module`. It also gets `dropout` and
`gradient_checkpointing` if it has parameters of these names. An attribute `side_multiple`, default 1, must divide the
side of its samples.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from soflow.plugins import PluginError, Registry


@dataclass(frozen=True)
class NetworkSpec:
    """Registered network."""

    implementation: str
    """Class or function that builds it, "package.module:name"."""
    side_multiple: int
    """Divisor of the side of the network's samples."""
    size: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the implementation."""
    dropout: bool = False
    """True if the network has dropout."""
    augmentation: bool = False
    """True if the network takes augmentation parameters as input, by its layer `map_augmentation`."""
    checkpointing: bool = True
    """True if the network can recompute blocks in the backward pass."""


def _plugin(reference: str, build: Any) -> NetworkSpec:
    if not callable(build):
        raise PluginError(f"is {build!r:.60}, not a class or function that builds a network")
    parameters = inspect.signature(build).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if missing := () if takes_all else {"image_size", "channels", "num_classes"} - set(parameters):
        raise PluginError(f"its parameters lack {', '.join(sorted(missing))}")
    return NetworkSpec(
        reference,
        getattr(build, "side_multiple", 1),
        dropout="dropout" in parameters,
        checkpointing="gradient_checkpointing" in parameters,
    )


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

_INCLUDED = {
    f"DiT-{name}/{patch}": NetworkSpec(
        "soflow.networks.dit:DiT", patch, {"patch": patch, "width": width, "depth": depth, "heads": heads}
    )
    for name, (width, depth, heads) in DIT_SIZES.items()
    for patch in (1, 2, 4)
} | {
    name: NetworkSpec("soflow.networks.unet:UNet", multiple, size, dropout=True, augmentation=True)
    for name, (multiple, size) in UNET_SIZES.items()
}
NETWORKS = Registry("networks", _INCLUDED, _plugin)
