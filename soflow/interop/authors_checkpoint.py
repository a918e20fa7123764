"""Conversion between checkpoints of the SoFlow authors and of this package.

An authors' checkpoint is a dictionary of `model` and `ema_model` (weights by key), `optimizer`, `finished_steps` and
`finished_epochs`. `authors_layout` says how their keys, shapes and order differ from ours. Optimizer states are
numbered by the position of the parameter, which differs as well: a DiT's position table is a parameter in their code
and a buffer here, and the U-Net's modules come in another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soflow.config import RunConfig, to_dict
from soflow.interop.authors_layout import Layout, layout_of
from soflow.networks.registry import NETWORKS
from soflow.training import checkpoints
from soflow.training.build import build_optimizer
from soflow.training.checkpoints import CheckpointError

NUM_CLASSES = {"latents": 1000, "cifar10": 10}
"""Number of classes of the authors' datasets."""


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of the SoFlow authors, on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged or in another format.
    """
    return checked(checkpoints.load(path), path)


def checked(stored: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint of the SoFlow authors.

    Raises:
        CheckpointError: if it is in another format.
    """
    for key in ("model", "ema_model"):
        if not isinstance(stored.get(key), Mapping):
            raise CheckpointError(f"{path}: is no checkpoint of the SoFlow authors, it contains no '{key}'")
    return stored


def import_state(stored: Mapping[str, Any], network: nn.Module, config: RunConfig, path: Path) -> dict[str, Any]:
    """Convert an authors' checkpoint to the state for `Trainer.load_state_dict` and `trained.load_sampler`.

    If the file contains no optimizer, its state is that of a new optimizer.

    Args:
        stored: result of `read`.
        network: the configured network, used for names and shapes only; it may be on the meta device.
        path: path of the file, for messages.

    Raises:
        CheckpointError: if a parameter does not match; the message names the first one and both shapes.
    """
    layout, kind = layout_of(config, network.state_dict()), config.network.name
    average = _import_weights(stored["ema_model"], network, layout, kind, path)
    ema_dtype = getattr(torch, config.training.ema_dtype)
    optimizer = build_optimizer(config, network).state_dict()
    if "optimizer" in stored:
        optimizer["state"] = _import_moments(stored, network, layout, path)
    return {
        "step": int(stored.get("finished_steps", 0)),
        "finished_epochs": int(stored.get("finished_epochs", 0)),
        "train_s": 0.0,
        "network": _import_weights(stored["model"], network, layout, kind, path),
        "ema": {name: value.to(ema_dtype) for name, value in average.items()},
        "optimizer": optimizer,
        "config": to_dict(config),
        "num_classes": len(network.state_dict()[layout.label_table]) - 1,
    }


def export_state(state: Mapping[str, Any], network: nn.Module, config: RunConfig) -> dict[str, Any]:
    """Convert a checkpoint of this package to the authors' layout; the inverse of `import_state`.

    The authors' code assigns optimizer states by position. Here this is the position of the parameter's name in
    `model`. A DiT has the order of an imported file, or if trained here: position table, x, t, s and y embedders,
    blocks, final layer. A U-Net has the order of EDM's modules.

    Args:
        state: content of the checkpoint.
        network: the configured network, see `import_state`.
    """
    layout = layout_of(config, state["network"])
    places = {name: place for place, name in enumerate(layout.keys)}
    moments = {
        places[name]: {key: layout.to_theirs(name, value) for key, value in moment.items()}
        for name, moment in _by_name(state["optimizer"]["state"], network).items()
        if name in places
    }
    group = state["optimizer"]["param_groups"][0] | {"params": list(range(len(places)))}
    return {
        "model": _export_weights(state["network"], layout),
        "ema_model": _export_weights(state["ema"], layout),
        "optimizer": {"state": dict(sorted(moments.items())), "param_groups": [group]},
        "finished_steps": state["step"],
        "finished_epochs": state.get("finished_epochs", 0),
    }


def check_network(config: RunConfig, path: Path) -> None:
    """Raise CheckpointError unless checkpoints of the configured network can be converted."""
    dataset, network = config.dataset, config.network.name
    if network not in NETWORKS.included or not network.startswith(("DiT-", "U-Net")):
        raise CheckpointError(f"{path}: network.name = {network}: the authors have DiT and U-Net only")
    if network.startswith("DiT-"):
        return
    if dataset.conditional:
        raise CheckpointError(f"{path}: dataset.conditional = True: must be False, the authors' U-Net takes no labels")
    if dataset.augmentation and dataset.augmentations != "upright":
        raise CheckpointError(
            f"{path}: dataset.augmentations = {dataset.augmentations}: must be upright, "
            "the authors' U-Net has no inputs for vertical flips and rotations"
        )


def check_solution(config: RunConfig, path: Path) -> None:
    """Raise CheckpointError unless the network can jump from noise to data, as the authors' sampler requires."""
    if config.objective.name == "flow_matching":
        raise CheckpointError(
            f"{path}: objective.name = flow_matching: learns no jump from noise to data, as the authors sample"
        )


def _import_weights(
    stored: Mapping[str, Tensor], network: nn.Module, layout: Layout, kind: str, path: Path
) -> dict[str, Tensor]:
    """Convert parameters and buffers to names of this package, in the order of the file."""
    expected, weights = network.state_dict(), {}
    for key, value in stored.items():
        entry = layout.entries.get(key)
        if entry is None:
            raise CheckpointError(f"{path}: {key}, {_shape(value)}, is no parameter of {kind}")
        required = entry if isinstance(entry, Tensor) else layout.to_theirs(entry, expected[entry])
        if value.shape != required.shape:
            raise CheckpointError(f"{path}: {key} is {_shape(value)}, but {_shape(required)} in {kind}")
        if isinstance(entry, str):
            weights[entry] = layout.to_ours(entry, value)
        elif not torch.equal(value.cpu().float(), entry):
            raise CheckpointError(f"{path}: {key} is {value.tolist()}, but {entry.tolist()} in {kind}")
    for key, entry in layout.entries.items():
        if key not in stored:
            required = entry if isinstance(entry, Tensor) else layout.to_theirs(entry, expected[entry])
            raise CheckpointError(f"{path}: {key}, {_shape(required)} in {kind}, is missing")
    # Weights without a key of theirs: the label table of the U-Net, which theirs lacks.
    return weights | {
        name: torch.zeros(value.shape, dtype=value.dtype) for name, value in expected.items() if name not in weights
    }


def _export_weights(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    merged = layout.merged(weights)
    return {
        key: entry.clone() if isinstance(entry, Tensor) else layout.to_theirs(entry, merged[entry].float())
        for key, entry in layout.entries.items()
    }


def _import_moments(
    stored: Mapping[str, Any], network: nn.Module, layout: Layout, path: Path
) -> dict[int, dict[str, Tensor]]:
    """Convert the optimizer's states; number them by the position of the parameters in this package's network."""
    names = [entry for entry in map(layout.entries.get, stored["model"]) if isinstance(entry, str)]
    counted = sum(len(group["params"]) for group in stored["optimizer"]["param_groups"])
    if counted != len(names):
        raise CheckpointError(f"{path}: its optimizer has {counted} parameters, its model {len(names)}")
    places = {name: place for place, name in enumerate(names)}
    states: dict[int, dict[str, Tensor]] = {}
    for i, (name, parameter) in enumerate(network.named_parameters()):
        moment = stored["optimizer"]["state"].get(places.get(name), {})
        required = layout.to_theirs(name, parameter)
        for key, value in moment.items():
            if value.dim() and value.shape != required.shape:
                raise CheckpointError(f"{path}: optimizer's {key} of {name}: {_shape(value)}, not {_shape(required)}")
            states.setdefault(i, {})[key] = layout.to_ours(name, value)
    return states


def _by_name(states: Mapping[int, dict[str, Tensor]], network: nn.Module) -> dict[str, dict[str, Tensor]]:
    names = [name for name, _ in network.named_parameters()]
    return {names[i]: state for i, state in states.items()}


def _shape(value: Tensor) -> str:
    return f"{tuple(value.shape)}"
