"""All feature networks by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class FeatureNetworkInfo:
    """What is known of a feature network before it is loaded."""

    extractor: str
    """Its name in torch-fidelity's registry."""
    layer: str
    """Layer whose output FID, KID, precision and recall compare."""
    num_features: int
    """Width of that layer."""
    logits: str
    """Layer of the logits that the Inception score is made of."""
    num_logits: int
    """Width of that layer."""
    image_shape: tuple[int, int, int] | None = None
    """The one (channels, height, width) it takes; None for any size of grey or RGB images."""
    dataset: str | None = None
    """Data set whose classes its logits tell apart."""


FEATURE_NETWORKS = {
    "digits-cnn": FeatureNetworkInfo("digits-cnn", "features", 64, "logits", 10, (1, 8, 8), "digits"),
    "fashion-cnn": FeatureNetworkInfo("fashion-cnn", "features", 64, "logits", 10, (1, 28, 28), "fashion_mnist"),
    "inception": FeatureNetworkInfo("inception-v3-compat", "2048", 2048, "logits_unbiased", 1008),
}
