"""Generated images against a reference, each worker looking at its own; all metrics are torch-fidelity's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch_fidelity
from torch import Tensor

from soflow.config import RunConfig
from soflow.data.base import DataSource
from soflow.evaluation import feature_networks, metrics, reference
from soflow.evaluation.moments import Moments, Rows, Workers
from soflow.evaluation.registry import FEATURE_NETWORKS
from soflow.files import sha256
from soflow.precision import Precision

CHUNK = 128  # images through the feature network at a time


@dataclass(frozen=True)
class Batch:
    """Some of the images that are evaluated together."""

    places: Tensor
    """[B] int64, each image's place among all of them, from 0 on."""
    images: Tensor
    """[B, C, H, W], uint8 in 0...255."""
    labels: Tensor | None = None
    """[B], the classes they were made for; None for none."""


class Evaluator:
    """Measures images with one feature network against one data source, or against a file of statistics.

    Every worker of a run has one. Building it loads the network and on worker 0 the reference, which it reads from
    `cache` if an evaluator with the same data, network, weights and torch-fidelity version left it there, and which
    all workers measure in shards otherwise. Images stay on the worker that has them: what workers exchange are
    moments of features for FID and, as far as other metrics need them, features and logits.

    Args:
        workers: this process among the workers; by default it is the only one.

    Raises:
        ConfigError: if the feature network's weights cannot be had or the file of statistics cannot serve.
        DataError: if the source has fewer than 4 images.
    """

    def __init__(
        self,
        source: DataSource,
        config: RunConfig,
        device: torch.device,
        cache: Path,
        workers: Workers | None = None,
    ):
        self.config, self.device, self.workers = config.evaluation, device, workers or Workers(device)
        self.network, self.image_shape = config.feature_network, config.dataset.image_shape
        self.info = FEATURE_NETWORKS[self.network]
        self.classifies = self.info.dataset == config.dataset.name
        from_file = reference.from_file(config) if self.config.reference else None
        weights = feature_networks.weights_path(self.network, self.config.inception_weights)
        self.weights_sha256 = sha256(weights)
        layers = [self.info.layer]
        if self.classifies or self.config.inception_score:
            layers.append(self.info.logits)
        self.extractor = feature_networks.load(self.network, layers, weights, device)
        self.reference = from_file or reference.from_data(
            source,
            config,
            lambda images: self._layers(images)[self.info.layer],
            self.workers,
            cache,
            (self.network, self.weights_sha256, torch_fidelity.__version__),
        )

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Compare images with the reference in one pass of the feature network; all workers get the same result.

        Args:
            batches: this worker's share of the images. All workers' places together are 0, 1, … N − 1.

        Returns:
            fid: Fréchet distance of the features. It depends on N, so compare values of equal N only.
            kid: mean squared kernel distance over 10 random subsets of each set, drawn with torch-fidelity's fixed
                seed; a subset has 1,000 images, or as many as the smaller of the two sets has. Like precision and
                recall it looks at the first 10,000 images and at most 10,000 references; a file of statistics has none.
            class_consistency: share of images whose predicted class is their label; only if there are labels and the
                feature network classifies this data set.
            precision, recall: if configured; share of images within the data's manifold and the other way round.
            inception_score: if configured; the score of the feature network's logits, which with a small classifier
                is that classifier's own.

        Raises:
            ValueError: if images or labels have the wrong type, shape or number.
        """
        moments = Moments(self.info.num_features, self.device)
        features, logits = Rows(self.info.num_features, reference.MANY), Rows(self.info.num_logits)
        labelled = torch.zeros(2, dtype=torch.float64, device=self.device)  # how many, and how many in their class
        compares_features = self.config.reference is None
        for batch in batches:
            layers = self._check_and_look(batch)
            moments.add(layers[self.info.layer])
            if compares_features:
                features.add(batch.places, layers[self.info.layer])
            if self.config.inception_score:
                logits.add(batch.places, layers[self.info.logits])
            if self.classifies and batch.labels is not None:
                right = layers[self.info.logits].argmax(1) == batch.labels.to(self.device)
                labelled += torch.stack([torch.ones_like(right).sum(), right.sum()])
        num_samples = self._merge(moments)
        measures = self._compare(moments)
        if compares_features:
            measures |= self._compare_features(features.merge(self.workers, num_samples))
        if self.config.inception_score:
            table = logits.merge(self.workers, num_samples)
            measures["inception_score"] = lambda: metrics.inception_score(table)
        number, consistent = self.workers.sum(labelled).tolist()
        if number:
            measures["class_consistency"] = lambda: consistent / number
        return self.workers.from_first(measures)

    def fid(self, batches: Iterable[Batch]) -> float:
        """FID alone, as `evaluate` measures it."""
        moments = Moments(self.info.num_features, self.device)
        for batch in batches:
            moments.add(self._check_and_look(batch)[self.info.layer])
        self._merge(moments)
        return self.workers.from_first(self._compare(moments))["fid"]

    def floor(self) -> dict[str, float]:
        """`fid_floor` and `kid_floor`: the same distances between two disjoint halves of the real images.

        Every class is split evenly and at random with a fixed seed: chance differences in class frequencies would
        otherwise outweigh all others. FID grows as sets shrink and a half is smaller than the sets of `evaluate`, so
        samples as good as the data can score below `fid_floor`. KID has no such bias and scatters around zero.
        Empty where a file of statistics takes the data's place, and on workers other than 0.
        """
        return self.reference.floor if self.reference else {}

    def protocol(self) -> dict[str, str | int]:
        """Everything that must agree for two values of a metric to be comparable; on worker 0."""
        facts = self.reference.facts
        if self.reference.features is not None:
            samples = min(self.config.num_samples, reference.MANY)
            facts = facts | {"kid_subset_size": metrics.kid_subset_size(samples, len(self.reference.features))}
        return {
            "feature_network": self.network,
            "feature_weights_sha256": self.weights_sha256[:12],
            "num_samples": self.config.num_samples,
            **facts,
            "torch_fidelity_version": torch_fidelity.__version__,
        }

    def _compare(self, moments: Moments) -> dict[str, Callable[[], float]]:
        """FID of all workers' features, to be measured on worker 0."""
        return {"fid": lambda: metrics.fid(moments.statistics(), self.reference.statistics)}

    def _compare_features(self, features: Tensor) -> dict[str, Callable[[], float]]:
        """KID, precision and recall of features [N, D], to be measured on worker 0."""
        found = {"kid": lambda: metrics.kid(features, self.reference.features)}
        if self.config.precision_recall:
            both = functools.cache(lambda: metrics.precision_recall(features, self.reference.features))
            found |= {"precision": lambda: both()["precision"], "recall": lambda: both()["recall"]}
        return found

    def _merge(self, moments: Moments) -> int:
        """Join all workers' moments and return the number of images."""
        moments.merge(self.workers)
        if moments.count < 2:
            raise ValueError(f"{moments.count} image given: a distribution needs at least 2")
        return moments.count

    def _check_and_look(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch.images, batch.labels
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 in 0...255, not {images.dtype}")
        if images.dim() != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images must have shape (N, *{self.image_shape}), not {tuple(images.shape)}")
        for name, values in (("places", batch.places), ("labels", labels)):
            if values is not None and values.shape != images.shape[:1]:
                raise ValueError(f"{name} must have shape ({len(images)},), one per image, not {tuple(values.shape)}")
        return self._layers(images)

    @torch.no_grad()
    def _layers(self, images: Tensor) -> dict[str, Tensor]:
        """The layers [B, width] of uint8 images [B, C, H, W], float32."""
        if self.network == "inception" and self.image_shape[0] == 1:
            images = images.expand(-1, 3, -1, -1)
        with Precision().context(self.device):  # TensorFloat-32 would make features depend on the device
            chunks = [self.extractor(chunk.to(self.device)) for chunk in images.split(CHUNK)]
        layers = (torch.cat(values) for values in zip(*chunks, strict=True))
        return dict(zip(self.extractor.features_list, layers, strict=True))
