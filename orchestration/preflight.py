"""Check of a run's input files before anything starts."""

from __future__ import annotations

import sys

from soflow.config import RunConfig, check_training
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.data.base import DataSource
from soflow.evaluation.registry import feature_network_info
from soflow.files import sha256
from soflow.objectives.registry import OBJECTIVES
from soflow.plugins import load


def check_inputs(config: RunConfig) -> None:
    """Check that the data set, reference statistics, and the weights of other networks, if used, are usable.

    Warns on stderr of settings that are valid but known to degrade training.

    Raises:
        DataError, ConfigError: naming the path and its expected content.
    """
    check_training(config)
    source = check_evaluation(config)
    if hasattr(config.objective, "teacher"):
        from soflow.training.teacher import load_teacher  # imports torch

        load_teacher(config, source.num_classes)
    if config.evaluation.times:
        from soflow.evaluation.generated import check_times

        check_times(config, load(OBJECTIVES[config.objective.name].implementation))
    if config.training.snapshot_every:
        _check_snapshots(config, source.num_classes)
    if (precision := config.training.quotient_precision) != "fp32":
        print(
            f"warning: training.quotient_precision = {precision}: a consistency loss amplifies the rounding errors of "
            "its two network outputs by 1 / r(k, K), 500 at r = 0.002, which is known to degrade training; use fp32",
            file=sys.stderr,
        )


def check_evaluation(config: RunConfig) -> DataSource:
    """Check what an evaluation needs: data, reference statistics, weights of feature network and VAE; open the data.

    Raises:
        DataError, ConfigError: naming the path and its expected content.
    """
    source = open_source(config.dataset)
    for note in getattr(source, "notes", ()):
        print(f"note: {note}", file=sys.stderr)
    if config.evaluation.reference is not None:
        from soflow.evaluation.reference_files import read_configured

        read_configured(config)
    try:
        feature_network_info(config.feature_network)
    except ValueError as error:
        raise ConfigError(f"evaluation.feature_network = {config.feature_network}: {error}") from None
    needs_weights = feature_network_info(config.feature_network).dataset is None  # not a small classifier
    if needs_weights or config.evaluation.reference is not None:
        from soflow.evaluation.feature_networks import weights_path

        weights = weights_path(config.feature_network, config.evaluation.feature_weights)
        if config.evaluation.reference is not None:
            from soflow.evaluation.reference_files import check_weights

            check_weights(config.evaluation.reference, lambda: sha256(weights))
    if config.dataset.latent:
        from soflow.codecs.latents import vae_folder

        vae_folder(config.dataset.vae)
    return source


def _check_snapshots(config: RunConfig, num_classes: int) -> None:
    import torch

    from soflow.training.build import build_network
    from soflow.training.snapshots import check_size

    with torch.device("meta"):
        check_size(config, build_network(config, num_classes))
