"""FID, KID and class consistency of generated images against a data source; all mathematics is torch-fidelity's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from soflow.config import RunConfig
from soflow.data import DataSource
from soflow.evaluation import FEATURE_NETWORKS, feature_networks
from soflow.files import cached, sha256

KID_SUBSETS, KID_SUBSET_SIZE = 10, 1000
BATCH = 128  # images through the feature network at a time
CACHE_FORMAT = 1  # raise when the cached tensors change their meaning


class Evaluator:
    """Measures images against one data source with one feature network.

    Building it loads the network and the reference, the features of all the source's images; the reference is read
    from `cache` if an evaluator with the same data, network, weights and torch-fidelity version left it there.

    Raises:
        ConfigError: if the feature network's weights cannot be had.
        ValueError: if the source has fewer than 4 images.
    """

    def __init__(self, source: DataSource, config: RunConfig, device: torch.device, cache: Path):
        self.source, self.device = source, device
        self.num_samples = config.evaluation.num_samples
        self.network = config.feature_network
        self.image_shape = tuple(source.batch(np.arange(1))[0].shape[1:])
        info = FEATURE_NETWORKS[self.network]
        self.classifies = info.dataset == config.dataset.name
        self.layer = info.layer
        weights = feature_networks.weights_path(self.network, config.evaluation.inception_weights)
        self.weights_sha256 = sha256(weights)
        layers = [self.layer, "logits"] if self.classifies else [self.layer]
        self.extractor = feature_networks.load(self.network, layers, weights, device)
        made_from = (source.fingerprint, self.network, self.weights_sha256, torch_fidelity.__version__, CACHE_FORMAT)
        key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:32]
        self.reference = cached(cache / f"{key}.safetensors", self._measure_source)

    def evaluate(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Compare images [N, C, H, W], uint8 in 0...255, with the reference in one pass of the feature network.

        Returns:
            fid: Fréchet distance of the features. It depends on N, so compare values of equal N only.
            kid: mean squared kernel distance over 10 random subsets of each set, drawn with torch-fidelity's fixed
                seed; a subset has 1,000 images, or as many as the smaller of the two sets has.
            class_consistency: share of images whose predicted class is their label [N]; only if labels are given and
                the feature network classifies this data set.

        Raises:
            ValueError: if images or labels have the wrong type, shape or number.
        """
        self._check(images, labels)
        layers = self._features(images.split(BATCH))
        features = layers[self.layer]
        statistics = {name: self.reference[name].numpy() for name in ("mu", "sigma")}
        result = {
            "fid": _fid(fid_features_to_statistics(features), statistics),
            "kid": _kid(features, self.reference["features"]),
        }
        if labels is not None and self.classifies:
            result["class_consistency"] = (layers["logits"].argmax(1) == labels.cpu()).double().mean().item()
        return result

    def floor(self) -> dict[str, float]:
        """`fid_floor` and `kid_floor`: the same distances between two disjoint halves of the real images.

        Every class is split evenly and at random with a fixed seed: chance differences in class frequencies would
        otherwise outweigh all others. FID grows as sets shrink and a half is smaller than the sets of `evaluate`, so
        samples as good as the data can score below `fid_floor`. KID has no such bias and scatters around zero.
        """
        fid, kid = self.reference["floor"].tolist()
        return {"fid_floor": fid, "kid_floor": kid}

    def protocol(self) -> dict[str, str | int]:
        """Everything that must agree for two values of FID or KID to be comparable."""
        return {
            "feature_network": self.network,
            "feature_weights_sha256": self.weights_sha256[:12],
            "num_samples": self.num_samples,
            "num_references": len(self.source),
            "reference_fingerprint": self.source.fingerprint[:12],
            "kid_subset_size": _subset_size(self.num_samples, len(self.source)),
            "torch_fidelity_version": torch_fidelity.__version__,
        }

    def _check(self, images: Tensor, labels: Tensor | None) -> None:
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 in 0...255, not {images.dtype}")
        if images.dim() != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images must have shape (N, *{self.image_shape}), not {tuple(images.shape)}")
        if len(images) < 2:
            raise ValueError(f"{len(images)} image given: a distribution needs at least 2")
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"labels must have shape ({len(images)},), one per image, not {tuple(labels.shape)}")

    @torch.no_grad()
    def _features(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """All layers [N, D] as float32 on the CPU, of uint8 images in batches [B, C, H, W]."""
        found: dict[str, list[Tensor]] = {}
        with torch.autocast(self.device.type, enabled=False):
            for images in batches:
                if self.network == "inception" and self.image_shape[0] == 1:
                    images = images.expand(-1, 3, -1, -1)
                layers = self.extractor.convert_features_tuple_to_dict(self.extractor(images.to(self.device)))
                for name, values in layers.items():
                    found.setdefault(name, []).append(values.cpu())
        return {name: torch.cat(values) for name, values in found.items()}

    def _measure_source(self) -> dict[str, Tensor]:
        """What the cache file holds: features, FID's mean `mu` and covariance `sigma`, and the floor (FID, KID)."""
        if len(self.source) < 4:
            raise ValueError(f"the data set has {len(self.source)} images: its two halves need at least 2 each")
        labels = []

        def batches():
            for indices in np.split(np.arange(len(self.source)), range(BATCH, len(self.source), BATCH)):
                images, classes = self.source.batch(indices)
                labels.append(classes)
                yield torch.from_numpy(images)

        features = self._features(batches())[self.layer]
        statistics = fid_features_to_statistics(features)
        first, second = (features[half] for half in _halves(np.concatenate(labels)))
        fid = _fid(fid_features_to_statistics(first), fid_features_to_statistics(second))
        return {
            "features": features,
            **{name: torch.from_numpy(values) for name, values in statistics.items()},
            "floor": torch.tensor([fid, _kid(first, second)], dtype=torch.float64),
        }


def _halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices [N // 2] of two disjoint random halves with the classes [N] spread evenly."""
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")][: len(labels) // 2 * 2]
    return order[::2], order[1::2]


def _fid(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    return fid_statistics_to_metric(first, second, verbose=False)[torch_fidelity.KEY_METRIC_FID]


def _kid(first: Tensor, second: Tensor) -> float:
    size = _subset_size(len(first), len(second))
    found = kid_features_to_metric(first, second, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False)
    return found[torch_fidelity.KEY_METRIC_KID_MEAN]


def _subset_size(first: int, second: int) -> int:
    return min(first, second, KID_SUBSET_SIZE)
