"""Reference for generated images: statistics and features of a data source, or a file of statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soflow import codecs
from soflow.config import RunConfig
from soflow.data.base import DataError, DataSource
from soflow.data.config import DatasetConfig
from soflow.evaluation import reference_files
from soflow.evaluation.cache import cached
from soflow.evaluation.metrics import fid, kid
from soflow.evaluation.moments import Moments, Rows, Workers
from soflow.evaluation.registry import feature_network_info
from soflow.files import sha256

MANY = 10_000
"""Maximum number of samples, and of references, whose features are stored for KID, precision and recall."""
BATCH = 128  # images per batch of the source
CACHE_FORMAT = 3  # increment whenever the meaning of the cached tensors changes


@dataclass(frozen=True)
class Reference:
    """Statistics and features of the reference images."""

    statistics: dict[str, np.ndarray]
    """FID's `mu` [D] and `sigma` [D, D], float64."""
    facts: dict[str, str | int]
    """Origin of the reference, for the evaluation protocol."""
    features: Tensor | None = None
    """[N, D], features of the data's images, or of 10,000 random ones if there are more; None for a file of
    statistics."""
    floor: dict[str, float] = field(default_factory=dict)
    """`fid_floor` and `kid_floor`, distances between halves of the data; empty for a file of statistics."""


def from_file(config: RunConfig) -> Reference:
    """Read the statistics of the file evaluation.reference.

    Raises:
        ConfigError: if the file is unusable.
    """
    path = config.evaluation.reference
    assert path is not None
    statistics = reference_files.read_configured(config)
    return Reference(statistics, {"reference": path.name, "reference_fingerprint": sha256(path)[:12]})


def from_data(
    source: DataSource,
    config: RunConfig,
    features_of: Callable[[Tensor], Tensor],
    workers: Workers,
    cache: Path,
    made_by: tuple[str, ...],
) -> Reference | None:
    """Load the reference of a data source from `cache`, or compute it on all workers in shards.

    Returns None on workers other than 0.

    Args:
        features_of: feature network, from uint8 images [B, *image_shape] to features [B, D].
        made_by: everything besides the data that the features depend on.

    Raises:
        DataError: if the source has fewer than 4 images.
    """
    made_from = (source.fingerprint, *made_by, *decoder_hashes(config.dataset), CACHE_FORMAT)
    path = cache / f"{hashlib.sha256(repr(made_from).encode()).hexdigest()[:32]}.safetensors"
    tensors = _from_cache_or_together(path, lambda: _measure(source, config, features_of, workers), workers)
    if tensors is None:
        return None
    facts = {
        "reference": "decoded latents" if config.dataset.latent else "data",
        "reference_fingerprint": source.fingerprint[:12],
        "num_references": len(source),
    }
    return Reference(
        {name: tensors[name].numpy() for name in ("mu", "sigma")},
        facts,
        tensors["features"],
        dict(zip(("fid_floor", "kid_floor"), tensors["floor"].tolist(), strict=True)),
    )


def _from_cache_or_together(
    path: Path, measure: Callable[[], dict[str, Tensor]], workers: Workers
) -> dict[str, Tensor] | None:
    """Read the cache on worker 0; on a miss, compute on all workers."""

    # An all-reduce that every worker makes exactly once: it reports a cache miss of worker 0 to all of them.
    def missing(flag: float) -> bool:
        return bool(workers.sum(torch.tensor(flag, device=workers.device)))

    if workers.rank:
        if missing(0.0):
            measure()
        return None
    measured = False

    def measure_on_all_workers() -> dict[str, Tensor]:
        nonlocal measured
        measured = missing(1.0)
        return measure()

    tensors = cached(path, measure_on_all_workers)
    if not measured:
        missing(0.0)
    return tensors


@torch.no_grad()
def _measure(
    source: DataSource, config: RunConfig, features_of: Callable[[Tensor], Tensor], workers: Workers
) -> dict[str, Tensor]:
    """Compute the content of the cache file: `mu`, `sigma`, `features` of at most 10,000 images, `floor` (FID, KID)."""
    if len(source) < 4:
        raise DataError(f"the dataset has {len(source)} images: its two halves need at least 2 each")
    dimension = feature_network_info(config.feature_network).num_features
    codec = codecs.build(config.dataset, workers.device)
    half = _halves(source.labels)
    place = _places(len(source))
    parts = [Moments(dimension, workers.device) for _ in range(3)]  # two halves, and the image left over
    rows = Rows(dimension)
    for begin in range(workers.rank * BATCH, len(source), workers.size * BATCH):
        indices = np.arange(begin, min(begin + BATCH, len(source)))
        stored = torch.from_numpy(source.batch(indices)[0]).to(workers.device)
        features = features_of(codec.images(stored))
        rows.add(torch.from_numpy(place[indices]), features)
        for part, moments in enumerate(parts):
            moments.add(features[torch.from_numpy(half[indices] == part).to(workers.device)])
    table = rows.merge(workers, min(len(source), MANY))
    for moments in parts:
        moments.merge(workers)
    floor = [fid(parts[0].statistics(), parts[1].statistics()), _kid_floor(table)] if not workers.rank else [0.0, 0.0]
    parts[0].join(parts[1])
    parts[0].join(parts[2])
    return {
        "features": table,
        **{name: torch.from_numpy(values) for name, values in parts[0].statistics().items()},
        "floor": torch.tensor(floor, dtype=torch.float64),
    }


def _halves(labels: np.ndarray) -> np.ndarray:
    """Split samples with class labels [N] into two disjoint random halves, balanced over classes.

    Returns [N], 0 or 1 for the half of each sample; 2 for the remaining sample if N is odd.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")][: len(labels) // 2 * 2]
    half = np.full(len(labels), 2)
    half[order[::2]], half[order[1::2]] = 0, 1
    return half


def _kid_floor(features: Tensor) -> float:
    """Compute KID between two random halves of features [N, D].

    The halves are not balanced over classes. KID's estimate has no bias if both sets are drawn independently of the
    classes: over all splits of the same features, pairs within a half and pairs across are equally similar on average,
    so the mean is 0. Balanced halves resemble each other more than independent sets do, and their KID is below 0.
    """
    order = np.random.default_rng(2).permutation(len(features))[: len(features) // 2 * 2]
    return kid(features[order[::2]], features[order[1::2]])[0]


def _places(num_samples: int) -> np.ndarray:
    """Assign each sample its row in the table of stored features, or −1 if more than 10,000 samples exist."""
    kept = np.sort(np.random.default_rng(1).permutation(num_samples)[:MANY])
    place = np.full(num_samples, -1)
    place[kept] = np.arange(len(kept))
    return place


def decoder_hashes(config: DatasetConfig) -> tuple[str, ...]:
    """Return hashes of the files of the autoencoder that decodes the dataset's latents; empty for images."""
    if not config.latent:
        return ()
    from soflow.codecs.latents import CONFIG, WEIGHTS, vae_folder

    folder = vae_folder(config.vae)
    return tuple(sha256(folder / name) for name in (CONFIG, WEIGHTS))
