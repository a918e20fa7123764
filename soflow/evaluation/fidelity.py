"""Compare generated images with a reference, sharded over the workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch_fidelity
from torch import Tensor

from soflow.codecs.base import TORCH_FIDELITY
from soflow.config import RunConfig
from soflow.config_base import ConfigError
from soflow.data.base import DataSource, class_counts
from soflow.evaluation import feature_networks, metrics, reference, reference_files
from soflow.evaluation.moments import Moments, Rows, Workers
from soflow.evaluation.registry import feature_network_info
from soflow.files import sha256


@dataclass(frozen=True)
class Batch:
    """Batch of the images of one evaluation."""

    places: Tensor
    """[B] int64, index of each image among all images of the evaluation, starting at 0."""
    images: Tensor
    """[B, C, H, W], uint8 in 0...255."""
    labels: Tensor | None = None
    """[B], classes the images were generated for; None for unconditional images."""
    others: tuple[Tensor, ...] = ()
    """The same images, rounded by further FID protocols."""

    def rounded(self, number: int) -> Batch:
        """Return the batch with the images of a further protocol."""
        return Batch(self.places, self.others[number], self.labels)


class Evaluator:
    """Evaluator of images with one feature network, against a data source or a file of statistics.

    Every worker of a run has one. The constructor loads the network and, on worker 0, the reference. The reference is
    read from `cache` if it was computed before for the same data, network, weights and torch-fidelity version;
    otherwise all workers compute it in shards. Images stay on their worker. The workers exchange only moments of
    features for FID and, if other metrics need them, features and logits.

    Args:
        workers: rank of this process and number of workers; default: a single worker.

    Raises:
        ConfigError: if the feature network's weights are unavailable or the file of statistics is unusable.
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
        self.class_counts = class_counts(source)
        self.network, self.image_shape = config.feature_network, config.dataset.image_shape
        try:
            self.info = feature_network_info(self.network)
        except ValueError as error:
            raise ConfigError(f"evaluation.feature_network = {self.network}: {error}") from None
        self.logits = self.info.logits or ""
        self.classifies = self.info.classifies(config.dataset.name, source.fingerprint)
        from_file = reference.from_file(config) if self.config.reference else None
        weights = feature_networks.weights_path(self.network, self.config.feature_weights)
        self.weights_sha256 = sha256(weights)
        if self.config.reference:
            reference_files.check_weights(self.config.reference, lambda: self.weights_sha256)
        layers = [self.info.layer]
        if self.classifies or self.config.inception_score:
            layers.append(self.logits)
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
        """Compare images with the reference in one pass of the feature network; return equal results on all workers.

        Args:
            batches: this worker's share of the images. The places of all workers together are 0, 1, … N − 1.

        Returns:
            fid: Fréchet distance of the features. It depends on N, so compare values of equal N only.
            kid: mean squared kernel distance over 10 random subsets of each set, drawn with torch-fidelity's fixed
                seed. A subset has 1,000 images, or the size of the smaller set. Like precision and recall, it uses the
                first 10,000 images and at most 10,000 references, and is unavailable with a file of statistics.
            kid_error: standard error of kid, see `metrics.kid_error`.
            class_consistency: fraction of images whose predicted class equals their label; only with labels and a
                feature network that classifies this dataset.
            precision, recall: if configured; fraction of images within the data manifold, and of data within the
                manifold of the images.
            density, coverage: if precision and recall are configured, see `metrics.density_coverage`.
            cmmd: only with the feature network clip, see `metrics.cmmd`; from the same images as kid.
            inception_score: if configured; computed from the logits of the feature network, so values of a small
                classifier are comparable only with each other.

        Raises:
            ValueError: if images or labels have the wrong type, shape or number.
        """
        measurement = Measurement(self)
        for batch in batches:
            measurement.add(batch)
        return measurement.metrics()

    def fid(self, batches: Iterable[Batch]) -> float:
        """Compute FID only, as in `evaluate`."""
        moments = Moments(self.info.num_features, self.device)
        for batch in batches:
            moments.add(self.checked_layers(batch)[self.info.layer])
        self.merge(moments)
        return self.workers.from_first(self.compare(moments))["fid"]

    @property
    def compares_features(self) -> bool:
        """True if the reference has features, not only their statistics."""
        return self.config.reference is None

    def floor(self) -> dict[str, float]:
        """Return `fid_floor` and `kid_floor`: the distances between two disjoint random halves of the real images.

        For FID every class is split evenly, because random differences in class frequencies would dominate the
        distance. FID increases as sets get smaller, and a half is smaller than the sets of `evaluate`, so perfect
        samples can score below `fid_floor`. KID has no such bias: between halves drawn without regard to classes it
        varies around zero, for the digits with a standard deviation of 0.003.
        Empty with a file of statistics, and on workers other than 0.
        """
        return self.reference.floor if self.reference else {}

    def protocol(self) -> dict[str, str | int]:
        """Return the settings that must agree for metric values to be comparable; call on worker 0 only."""
        facts, features = self._known.facts, self._known.features
        if features is not None:
            samples = min(self.config.num_samples, reference.MANY)
            facts = facts | {"kid_subset_size": metrics.kid_subset_size(samples, len(features))}
        return {
            "feature_network": Path(self.network).name,
            "feature_weights_sha256": self.weights_sha256[:12],
            "num_samples": self.config.num_samples,
            "labels": self.config.labels,
            **({} if self.config.protocol == TORCH_FIDELITY else {"protocol": self.config.protocol}),
            **facts,
            "torch_fidelity_version": torch_fidelity.__version__,
        }

    @property
    def _known(self) -> reference.Reference:
        """The reference, which only worker 0 has."""
        assert self.reference is not None
        return self.reference

    def compare(self, moments: Moments) -> dict[str, Callable[[], float]]:
        """Return a function for FID of all workers' features, to be called on worker 0."""
        return {"fid": lambda: metrics.fid(moments.statistics(), self._known.statistics)}

    def compare_features(self, features: Tensor) -> dict[str, Callable[[], float]]:
        """Return functions for KID, precision and recall of features [N, D], to be called on worker 0."""

        def references() -> Tensor:
            assert self._known.features is not None  # not a file of statistics
            return self._known.features

        kid = functools.cache(lambda: metrics.kid(features, references()))
        measures = {"kid": lambda: kid()[0]}
        if len(features) > 2:
            measures["kid_error"] = lambda: metrics.kid_error(features, references(), kid()[1])
        if self.config.precision_recall:
            both = functools.cache(lambda: metrics.precision_recall(features, references()))
            measures |= {"precision": lambda: both()["precision"], "recall": lambda: both()["recall"]}
            other = functools.cache(lambda: metrics.density_coverage(features, references()))
            measures |= {"density": lambda: other()["density"], "coverage": lambda: other()["coverage"]}
        if self.network == "clip":
            measures["cmmd"] = lambda: metrics.cmmd(features, references())
        return measures

    def merge(self, moments: Moments) -> int:
        """Merge all workers' moments and return the number of images."""
        moments.merge(self.workers)
        if moments.count < 2:
            raise ValueError(f"{moments.count} image evaluated: a distribution needs at least 2")
        return moments.count

    def checked_layers(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the layers of a batch's images, whose type and shape are checked."""
        images, labels = batch.images, batch.labels
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 in 0...255, not {images.dtype}")
        if images.dim() != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images must have shape (N, *{self.image_shape}), not {tuple(images.shape)}")
        for name, values in (("places", batch.places), ("labels", labels)):
            if values is not None and values.shape != images.shape[:1]:
                raise ValueError(f"{name} must have shape ({len(images)},), one per image, not {tuple(values.shape)}")
        return self._layers(images)

    def _layers(self, images: Tensor) -> dict[str, Tensor]:
        return feature_networks.layers_of(self.extractor, images, self.device)


class Measurement:
    """Comparison of images that arrive batch by batch; on all workers alike."""

    def __init__(self, evaluator: Evaluator):
        self.evaluator, info, device = evaluator, evaluator.info, evaluator.device
        self._moments = Moments(info.num_features, device)
        self._features, self._logits = Rows(info.num_features, reference.MANY), Rows(info.num_logits)
        self._labeled = torch.zeros(2, dtype=torch.float64, device=device)
        """Number of labeled images, and of correctly classified ones."""

    def add(self, batch: Batch) -> None:
        """Add images of this worker."""
        evaluator, info = self.evaluator, self.evaluator.info
        layers = evaluator.checked_layers(batch)
        self._moments.add(layers[info.layer])
        if evaluator.compares_features:
            self._features.add(batch.places, layers[info.layer])
        if evaluator.config.inception_score:
            self._logits.add(batch.places, layers[evaluator.logits])
        if evaluator.classifies and batch.labels is not None:
            correct = layers[evaluator.logits].argmax(1) == batch.labels.to(evaluator.device)
            self._labeled += torch.stack([torch.ones_like(correct).sum(), correct.sum()])

    def metrics(self) -> dict[str, float]:
        """Return the metrics of all workers' images, see `Evaluator.evaluate`."""
        evaluator, workers = self.evaluator, self.evaluator.workers
        num_samples = evaluator.merge(self._moments)
        measures = evaluator.compare(self._moments)
        if evaluator.compares_features:
            measures |= evaluator.compare_features(self._features.merge(workers, num_samples))
        if evaluator.config.inception_score:
            table = self._logits.merge(workers, num_samples)
            measures["inception_score"] = lambda: metrics.inception_score(table)
        number, consistent = workers.sum(self._labeled).tolist()
        if number:
            measures["class_consistency"] = lambda: consistent / number
        return workers.from_first(measures)
