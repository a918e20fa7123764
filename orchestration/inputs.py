"""What a run reads, looked at before anything starts."""

from __future__ import annotations

from soflow.config import RunConfig
from soflow.data import open_source


def check_inputs(config: RunConfig) -> None:
    """Make sure that the data set can be opened and Inception's weights, where they are wanted, can be had.

    Raises:
        DataError, ConfigError: naming the path and what is expected there.
    """
    open_source(config.dataset)
    if config.feature_network == "inception":
        from soflow.evaluation.feature_networks import weights_path

        weights_path("inception", config.evaluation.inception_weights)
