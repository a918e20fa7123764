"""Feature networks for FID and KID: small classifiers, torch-fidelity's Inception, large vision transformers.

Importing this module registers the classifiers with torch-fidelity, so `digits-cnn`, `fashion-cnn` and `soflow-cnn`
(with the file of its weights) also work as `feature_extractor` of `torch_fidelity.calculate_metrics`.
experiments/train_feature_network.py trains their weights.
"""

from __future__ import annotations

import hashlib
import math
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from soflow import plugins
from soflow.config_base import ConfigError
from soflow.evaluation.registry import (
    CLASSIFIER,
    FEATURE_NETWORKS,
    FEATURES,
    MAKER,
    SUFFIX,
    WEIGHTS,
    feature_network_info,
)
from soflow.files import write_atomic
from soflow.precision import Precision

PUBLISHED = {
    "inception": URL_INCEPTION_V3,
    "dinov2": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "clip": "open_clip_model.safetensors from https://huggingface.co/timm/vit_large_patch14_clip_336.openai",
}
"""Networks whose weights are not included here, and where they are published."""
CHUNK = 128
"""Images per call of a feature network."""
LAST_SIDE, LAST_WIDTH = 4, 64
"""Side in pixels, at most, and channels of a classifier's last stage."""


def widths_for(image_shape: tuple[int, int, int]) -> list[int]:
    """Return the channels of a classifier's stages: two or more, each halving the side and doubling the channels."""
    stages = max(2, math.ceil(math.log2(image_shape[1] / LAST_SIDE)))
    return [max(LAST_WIDTH >> i, 16) for i in reversed(range(stages))]


class Classifier(nn.Module):
    """Convolutional classifier of images [C, H, W]; each width is a stage that halves the side.

    The features are normalized before a smooth activation, so that all 64 have a similar scale and FID changes smoothly
    with the images.
    """

    def __init__(self, image_shape: tuple[int, int, int], widths: Sequence[int], num_classes: int):
        super().__init__()
        channels, side, _ = image_shape
        layers: list[nn.Module] = []
        for width in widths:
            for before, stride in ((channels, 2), (width, 1)):
                layers += [nn.Conv2d(before, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
            channels, side = width, (side + 1) // 2
        layers += [nn.Flatten(), nn.Linear(channels * side**2, FEATURES, bias=False), nn.BatchNorm1d(FEATURES)]
        self.body = nn.Sequential(*layers, nn.SiLU())
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features [B, 64] and logits [B, classes] of images [B, C, H, W] in 0...255, of any dtype."""
        features = self.body(images.to(self.head.weight.dtype) / 127.5 - 1)
        return features, self.head(self.dropout(features))


class ClassifierFeatures(FeatureExtractorBase):
    """Trained Classifier as torch-fidelity feature extractor; `name` is digits-cnn, fashion-cnn or soflow-cnn.

    Uses the weights included in the package unless `feature_extractor_weights_path` names another file.
    """

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        path = Path(feature_extractor_weights_path or weights_path(name))
        info = feature_network_info(str(path) if name == CLASSIFIER else name)
        assert info.image_shape is not None
        self.image_shape = info.image_shape
        self.classifier = Classifier(info.image_shape, widths_for(info.image_shape), info.num_logits)
        self.classifier.load_state_dict(load_file(path))
        self.requires_grad_(False)
        self.eval()

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Compute the requested float32 layers ("features" [B, 64], "logits" [B, classes]) of uint8 images."""
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


for _name in (*(name for name in FEATURE_NETWORKS.included if name not in PUBLISHED), CLASSIFIER):
    if _name not in FEATURE_EXTRACTORS_REGISTRY:  # torch-fidelity rejects a second registration
        register_feature_extractor(_name, ClassifierFeatures)


def weights_path(name: str, feature_weights: Path | None = None) -> Path:
    """Return the file with a feature network's weights.

    Inception's weights are downloaded to torch-fidelity's cache folder unless a file is configured.

    Raises:
        ConfigError: if published weights are missing, or Inception's cannot be downloaded.
    """
    if name not in PUBLISHED:
        if name not in FEATURE_NETWORKS:
            return Path(name)
        return FEATURE_NETWORKS[name].weights or WEIGHTS / f"{name}{SUFFIX}"
    if feature_weights is None:
        if name == "inception":
            return _fetch_inception()
        raise ConfigError(f"evaluation.feature_weights = None: {name} needs a file; {_remedy(name)}")
    if not feature_weights.is_file():
        raise ConfigError(f"evaluation.feature_weights = {feature_weights}: no such file; {_remedy(name)}")
    return feature_weights


def load(name: str, layers: list[str], weights: Path, device: torch.device) -> FeatureExtractorBase:
    """Load a feature network that maps uint8 images to the named layers.

    Raises:
        ConfigError: if the file does not contain the weights of a published network.
    """
    # Random initial weights, which are overwritten, must not advance the caller's random state.
    with torch.random.fork_rng(devices=[]):
        try:
            if name == "inception":
                # torch-fidelity unpickles without restriction, so check first that the file contains only tensors.
                torch.load(weights, map_location="cpu", weights_only=True)
            registered = feature_network_info(name).extractor
            if ":" in registered and registered not in FEATURE_EXTRACTORS_REGISTRY:
                register_feature_extractor(registered, plugins.load(registered))
            extractor = create_feature_extractor(
                registered,
                layers,
                cuda=False,
                feature_extractor_weights_path=str(weights),
                verbose=False,
            )
        except Exception as error:  # unpickling can fail in any way
            if name not in PUBLISHED:
                raise
            reason = " ".join(str(error).split())[:160]  # with the first key that is missing
            raise ConfigError(
                f"evaluation.feature_weights = {weights}: not the weights of {name} ({reason}); {_remedy(name)}"
            ) from None
    if name not in PUBLISHED and device.type == "cuda":
        extractor.double()  # TensorFloat-32 would make features depend on the device
    return extractor.to(device)


@torch.no_grad()
def layers_of(extractor: FeatureExtractorBase, images: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Compute the layers [B, width], float32, of uint8 images [B, C, H, W], a part of them at a time."""
    if extractor.name == FEATURE_NETWORKS["inception"].extractor and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    with Precision().context(device):  # TensorFloat-32 would make features depend on the device
        chunks = [extractor(chunk.to(device)) for chunk in images.split(CHUNK)]
    layers = (torch.cat(values) for values in zip(*chunks, strict=True))
    return dict(zip(extractor.features_list, layers, strict=True))


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
                f"evaluation.feature_weights = None: cannot fetch them to {path} ({error}); {_remedy('inception')}"
            ) from None
    return path


def _remedy(name: str) -> str:
    return (
        f"download {PUBLISHED[name]} and set evaluation.feature_weights to it, or evaluation.feature_network to one of "
        f"digits-cnn, fashion-cnn if it fits the dataset, or to a file made by {MAKER} from your images"
    )
