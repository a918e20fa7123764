"""Build the network, objective and optimizer of a run from its configuration."""

from __future__ import annotations

import torch
from torch import nn

from soflow import networks, objectives
from soflow.config import RunConfig
from soflow.networks.registry import NETWORKS
from soflow.objectives.base import Objective


def build_network(config: RunConfig, num_classes: int) -> nn.Module:
    """Build the configured network, with initial weights that depend on the seed only."""
    with torch.random.fork_rng():
        torch.random.manual_seed(config.seed)
        network = networks.build(config.network, config.dataset.sample_shape, num_classes)
    if NETWORKS[config.network.name].augmentation and not config.dataset.augmentation:
        # DistributedDataParallel refuses weights that are trained but not used.
        network.map_augmentation.requires_grad_(False)
    return network


def build_objective(config: RunConfig, num_classes: int) -> Objective:
    """Build the configured objective for data with `num_classes` classes."""
    return objectives.build(
        config.objective,
        num_classes,
        config.dataset.conditional,
        config.training.precision,
        config.training.quotient_precision,
        config.network.dropout > 0,
    )


def build_optimizer(config: RunConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Build the configured optimizer for the network's parameters."""
    kinds = {"adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}
    options = config.optimizer
    if options.name == "radam":
        extra = {"decoupled_weight_decay": True}
    elif next(network.parameters()).is_meta:
        # Meta tensors have no fused kernel. Without foreach there are as few temporaries as in the fused kernel.
        extra = {"foreach": False}
    else:
        extra = {"fused": True}
    return kinds[options.name](
        network.parameters(),
        lr=options.learning_rate,
        betas=options.betas,
        weight_decay=options.weight_decay,
        **extra,
    )
