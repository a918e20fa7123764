"""Feature networks for FID and KID: two small classifiers included here, and torch-fidelity's Inception network.

Importing this module registers the classifiers with torch-fidelity, so `digits-cnn` and `fashion-cnn` also work as
`feature_extractor` of `torch_fidelity.calculate_metrics`. experiments/train_feature_network.py trains their weights.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from soflow.config_base import ConfigError
from soflow.evaluation.registry import FEATURE_NETWORKS, WEIGHTS
from soflow.files import write_atomic

WIDTHS = {"digits-cnn": (32, 64), "fashion-cnn": (16, 32, 64)}
FEATURES, CLASSES = 64, 10


class Classifier(nn.Module):
    """Convolutional classifier of grayscale images; each width is a stage that halves the side.

    The features are normalized before a smooth activation, so that all 64 have a similar scale and FID changes smoothly
    with the images.
    """

    def __init__(self, name: str):
        super().__init__()
        shape = FEATURE_NETWORKS[name].image_shape
        assert shape is not None  # only Inception takes images of any shape
        channels, side, _ = shape
        layers: list[nn.Module] = []
        for width in WIDTHS[name]:
            for before, stride in ((channels, 2), (width, 1)):
                layers += [nn.Conv2d(before, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
            channels, side = width, (side + 1) // 2
        layers += [nn.Flatten(), nn.Linear(channels * side**2, FEATURES, bias=False), nn.BatchNorm1d(FEATURES)]
        self.body = nn.Sequential(*layers, nn.SiLU())
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features [B, 64] and logits [B, 10] of images [B, 1, H, W] in 0...255, of any dtype."""
        features = self.body(images.to(self.head.weight.dtype) / 127.5 - 1)
        return features, self.head(self.dropout(features))


class ClassifierFeatures(FeatureExtractorBase):
    """Trained Classifier as torch-fidelity feature extractor; `name` is digits-cnn or fashion-cnn.

    Uses the weights included in the package unless `feature_extractor_weights_path` names another file.
    """

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        self.image_shape = FEATURE_NETWORKS[name].image_shape
        self.classifier = Classifier(name)
        self.classifier.load_state_dict(load_file(feature_extractor_weights_path or WEIGHTS / f"{name}.safetensors"))
        self.requires_grad_(False)
        self.eval()

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Compute the requested float32 layers ("features" [B, 64], "logits" [B, 10]) of uint8 images [B, 1, H, W]."""
        if input.dtype != torch.uint8 or tuple(input.shape[1:]) != self.image_shape:
            raise ValueError(
                f"{self.name} takes uint8 images of shape {self.image_shape}, "
                f"not {input.dtype} of shape {tuple(input.shape[1:])}"
            )
        layers = dict(zip(self.get_provided_features_list(), self.classifier(input), strict=True))
        return tuple(layers[name].float() for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False


for _name in WIDTHS:
    if _name not in FEATURE_EXTRACTORS_REGISTRY:  # torch-fidelity rejects a second registration
        register_feature_extractor(_name, ClassifierFeatures)


def weights_path(name: str, inception_weights: Path | None = None) -> Path:
    """Return the file with a feature network's weights.

    Inception's weights are downloaded to torch-fidelity's cache folder unless a file is configured.

    Raises:
        ConfigError: if Inception's weights are missing and cannot be downloaded.
    """
    if name != "inception":
        return WEIGHTS / f"{name}.safetensors"
    if inception_weights is None:
        return _fetch_inception()
    if not inception_weights.is_file():
        raise ConfigError(f"evaluation.inception_weights = {inception_weights}: no such file; {_remedy()}")
    return inception_weights


def metadata(path: Path) -> dict[str, Any]:
    """Read the training metadata of a classifier: test_accuracy, seed, steps, split, data_sha256 (and test_sha256)."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["made"])


def load(name: str, layers: list[str], weights: Path, device: torch.device) -> FeatureExtractorBase:
    """Load a feature network that maps uint8 images to the named layers.

    Raises:
        ConfigError: if the file does not contain Inception's weights.
    """
    # Random initial weights, which are overwritten, must not advance the caller's random state.
    with torch.random.fork_rng(devices=[]):
        try:
            if name == "inception":
                # torch-fidelity unpickles without restriction, so check first that the file contains only tensors.
                torch.load(weights, map_location="cpu", weights_only=True)
            extractor = create_feature_extractor(
                FEATURE_NETWORKS[name].extractor,
                layers,
                cuda=False,
                feature_extractor_weights_path=str(weights),
                verbose=False,
            )
        except Exception as error:  # unpickling can fail in any way
            if name != "inception":
                raise
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"evaluation.inception_weights = {weights}: not torch-fidelity's Inception weights ({reason}); "
                f"{_remedy()}"
            ) from None
    if name != "inception" and device.type == "cuda":
        extractor.double()  # TensorFloat-32 would make features depend on the device
    return extractor.to(device)


def _fetch_inception() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if not path.is_file():
        try:
            # torch.hub's download has no timeout.
            with urllib.request.urlopen(URL_INCEPTION_V3, timeout=20) as response:
                content = response.read()
            if not hashlib.sha256(content).hexdigest().startswith(path.stem.rpartition("-")[2]):
                raise OSError("the download is damaged")
            write_atomic(path, content)
        except (OSError, HTTPException) as error:
            raise ConfigError(
                f"evaluation.inception_weights = None: cannot fetch them to {path} ({error}); {_remedy()}"
            ) from None
    return path


def _remedy() -> str:
    return (
        f"download {URL_INCEPTION_V3} elsewhere and give its path, or set evaluation.feature_network to one of "
        f"{', '.join(WIDTHS)} if it fits the dataset"
    )
