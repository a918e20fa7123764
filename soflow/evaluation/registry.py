"""Registry of the feature networks, and the properties of classifiers trained on other images.

A plug-in is a subclass of torch-fidelity's FeatureExtractorBase with class attributes named as the fields of
FeatureNetworkInfo: `layer`, `num_features`, `weights`, and maybe `logits`, `num_logits`, `image_shape` and `dataset`.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from soflow.plugins import PluginError, Registry

MAKER = "experiments/train_feature_network.py"
FEATURES = 64
"""Features of every classifier."""
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class FeatureNetworkInfo:
    """Properties of a feature network that are known without loading it."""

    extractor: str
    """Name in torch-fidelity's registry, or module:class of one that is registered when it is used."""
    layer: str
    """Layer with the features for FID, KID, precision and recall."""
    num_features: int
    """Width of `layer`."""
    logits: str | None = None
    """Layer with the logits for the Inception score; None for a network without classes."""
    num_logits: int = 0
    """Width of `logits`."""
    image_shape: tuple[int, int, int] | None = None
    """Required (channels, height, width); None for any size of grayscale or RGB images."""
    dataset: str | None = None
    """Dataset whose classes the logits predict: its name, or its fingerprint if it is not in the registry."""
    weights: Path | None = None
    """File whose hash identifies the network; None for the included ones, see feature_networks.weights_path."""

    def classifies(self, dataset: str, fingerprint: str) -> bool:
        """Check whether the logits predict the classes of the dataset with this name and fingerprint."""
        return self.logits is not None and self.dataset in (dataset, fingerprint)


def _plugin(reference: str, extractor: Any) -> FeatureNetworkInfo:
    required = ("layer", "num_features", "weights")
    if missing := [name for name in required if not hasattr(extractor, name)]:
        raise PluginError(f"needs the class attributes {', '.join(missing)}")
    if not Path(extractor.weights).is_file():
        raise PluginError(f"its weights = {extractor.weights} are no file")
    names = [field.name for field in fields(FeatureNetworkInfo) if field.name not in ("extractor", "weights")]
    values = {name: getattr(extractor, name) for name in names if hasattr(extractor, name)}
    return FeatureNetworkInfo(reference, weights=Path(extractor.weights), **values)


_TRANSFORMERS = "soflow.evaluation.vision_transformers"
_INCLUDED = {
    "digits-cnn": FeatureNetworkInfo("digits-cnn", "features", 64, "logits", 10, (1, 8, 8), "digits"),
    "fashion-cnn": FeatureNetworkInfo("fashion-cnn", "features", 64, "logits", 10, (1, 28, 28), "fashion_mnist"),
    "inception": FeatureNetworkInfo("inception-v3-compat", "2048", 2048, "logits_unbiased", 1008),
    "dinov2": FeatureNetworkInfo(f"{_TRANSFORMERS}:DINOv2", "features", 1024),
    "clip": FeatureNetworkInfo(f"{_TRANSFORMERS}:CLIP", "features", 768),
}
FEATURE_NETWORKS = Registry("feature_networks", _INCLUDED, _plugin)
CLASSIFIER = "soflow-cnn"
"""Name in torch-fidelity's registry of classifiers whose file describes them."""
SUFFIX = ".safetensors"


def feature_network_info(name: str) -> FeatureNetworkInfo:
    """Return the properties of a feature network: a name in the registry, or the path of a classifier's file.

    Raises:
        ValueError: if the name is unknown, or the file is missing or of another kind.
    """
    return FEATURE_NETWORKS[name] if name in FEATURE_NETWORKS else _info_of_file(name)


@functools.cache
def _info_of_file(name: str) -> FeatureNetworkInfo:
    path = Path(name)
    if path.suffix != SUFFIX:
        raise ValueError(f"must be one of {', '.join(sorted(FEATURE_NETWORKS))}, or a {SUFFIX} file made by {MAKER}")
    if not path.is_file():
        raise ValueError(f"there is no such file; {MAKER} makes one")
    try:
        made = metadata(path)
        shape, classes = tuple(made["image_shape"]), int(made["num_classes"])
        return FeatureNetworkInfo(CLASSIFIER, "features", FEATURES, "logits", classes, shape, made["data_sha256"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"is no feature network made by {MAKER} ({type(error).__name__}: {error})") from None


def metadata(path: Path) -> dict:
    """Read the metadata of a classifier: test_accuracy, seed, steps, split, data_sha256, and what it takes."""
    with safe_open(path, "numpy") as file:
        return json.loads((file.metadata() or {})["made"])
