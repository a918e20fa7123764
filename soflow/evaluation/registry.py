"""Registry of the feature networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class FeatureNetworkInfo:
    """Properties of a feature network that are known without loading it."""

    extractor: str
    """Name in torch-fidelity's registry."""
    layer: str
    """Layer with the features for FID, KID, precision and recall."""
    num_features: int
    """Width of `layer`."""
    logits: str
    """Layer with the logits for the Inception score."""
    num_logits: int
    """Width of `logits`."""
    image_shape: tuple[int, int, int] | None = None
    """Required (channels, height, width); None for any size of grayscale or RGB images."""
    dataset: str | None = None
    """Dataset whose classes the logits predict."""


FEATURE_NETWORKS = {
    "digits-cnn": FeatureNetworkInfo("digits-cnn", "features", 64, "logits", 10, (1, 8, 8), "digits"),
    "fashion-cnn": FeatureNetworkInfo("fashion-cnn", "features", 64, "logits", 10, (1, 28, 28), "fashion_mnist"),
    "inception": FeatureNetworkInfo("inception-v3-compat", "2048", 2048, "logits_unbiased", 1008),
}
