"""Conversion between checkpoints of the SoFlow authors and of this package.

An authors' checkpoint is a dictionary of `model` and `ema_model` (parameters by name, prefixed with `network.`),
`optimizer`, `finished_steps` and `finished_epochs`. DiT parameters have the same names here, with two differences. The
position table is a parameter in their code and a buffer here, so optimizer states are numbered differently. Without
label drop, their label table has no null row, because it would never be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soflow.config import RunConfig, to_dict
from soflow.training import checkpoints
from soflow.training.build import build_optimizer
from soflow.training.checkpoints import CheckpointError

PREFIX = "network."
LABEL_TABLE = "y_embedder.embedding_table.weight"
NUM_CLASSES = {"latents": 1000, "cifar10": 10}
"""Number of classes of the authors' datasets."""


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of the SoFlow authors, on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged or in another format.
    """
    stored = checkpoints.load(path)
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
    average = _import_weights(stored["ema_model"], network, config, path)
    ema_dtype = getattr(torch, config.training.ema_dtype)
    optimizer = build_optimizer(config, network).state_dict()
    if "optimizer" in stored:
        optimizer["state"] = _import_moments(stored, network, config, path)
    return {
        "step": int(stored.get("finished_steps", 0)),
        "finished_epochs": int(stored.get("finished_epochs", 0)),
        "train_s": 0.0,
        "network": _import_weights(stored["model"], network, config, path),
        "ema": {name: value.to(ema_dtype) for name, value in average.items()},
        "optimizer": optimizer,
        "config": to_dict(config),
        "num_classes": len(network.state_dict()[LABEL_TABLE]) - 1,
    }


def export_state(state: Mapping[str, Any], network: nn.Module, config: RunConfig) -> dict[str, Any]:
    """Convert a checkpoint of this package to the authors' layout; the inverse of `import_state`.

    The authors' code assigns optimizer states by position. Here this is the position of the parameter's name in
    `model`: the order of an imported file, or for a network trained here: position table, x, t, s and y embedders,
    blocks, final layer.

    Args:
        state: content of the checkpoint.
        network: the configured network, see `import_state`.
    """
    names = list(state["network"])
    moments = {
        names.index(name): {key: _without_null_row(name, value, config) for key, value in moment.items()}
        for name, moment in _by_name(state["optimizer"]["state"], network).items()
    }
    group = state["optimizer"]["param_groups"][0] | {"params": list(range(len(names)))}
    return {
        "model": _export_weights(state["network"], names, config),
        "ema_model": _export_weights(state["ema"], names, config),
        "optimizer": {"state": dict(sorted(moments.items())), "param_groups": [group]},
        "finished_steps": state["step"],
        "finished_epochs": state.get("finished_epochs", 0),
    }


def check_network(config: RunConfig, path: Path) -> None:
    """Raise CheckpointError unless checkpoints of the configured network can be converted."""
    if not config.network.name.startswith("DiT-"):
        raise CheckpointError(
            f"{path}: network.name = {config.network.name}: only DiT checkpoints can be converted; "
            "the layers of the authors' U-Net are not known to be the same"
        )


def check_solution(config: RunConfig, path: Path) -> None:
    """Raise CheckpointError unless the network can jump from noise to data, as the authors' sampler requires."""
    if config.objective.name == "flow_matching":
        raise CheckpointError(
            f"{path}: objective.name = flow_matching: learns no jump from noise to data, as the authors sample"
        )


def _import_weights(
    stored: Mapping[str, Tensor], network: nn.Module, config: RunConfig, path: Path
) -> dict[str, Tensor]:
    """Convert parameters and buffers to names of this package, in the order of the file."""
    expected, kind, weights = network.state_dict(), config.network.name, {}
    for key, value in stored.items():
        name = key.removeprefix(PREFIX)
        if name == key or name not in expected:
            raise CheckpointError(f"{path}: {key}, {_shape(value)}, is no parameter of {kind}")
        weights[name] = _with_null_row(name, value, config)
        if weights[name].shape != expected[name].shape:
            required = _without_null_row(name, expected[name], config)
            raise CheckpointError(f"{path}: {key} is {_shape(value)}, but {_shape(required)} in {kind}")
    for name, value in expected.items():
        if name not in weights:
            raise CheckpointError(f"{path}: {PREFIX}{name}, {_shape(value)} in {kind}, is missing")
    return weights


def _export_weights(weights: Mapping[str, Tensor], names: list[str], config: RunConfig) -> dict[str, Tensor]:
    return {PREFIX + name: _without_null_row(name, weights[name].float(), config) for name in names}


def _import_moments(
    stored: Mapping[str, Any], network: nn.Module, config: RunConfig, path: Path
) -> dict[int, dict[str, Tensor]]:
    """Convert the optimizer's states; number them by the position of the parameters in this package's network."""
    names = [key.removeprefix(PREFIX) for key in stored["model"]]
    counted = sum(len(group["params"]) for group in stored["optimizer"]["param_groups"])
    if counted != len(names):
        raise CheckpointError(f"{path}: its optimizer has {counted} parameters, its model {len(names)}")
    states: dict[int, dict[str, Tensor]] = {}
    for i, (name, parameter) in enumerate(network.named_parameters()):
        moment = stored["optimizer"]["state"].get(names.index(name), {})
        for key, value in moment.items():
            value = _with_null_row(name, value, config)
            if value.dim() and value.shape != parameter.shape:
                raise CheckpointError(f"{path}: optimizer's {key} of {name}: {_shape(value)}, not {_shape(parameter)}")
            states.setdefault(i, {})[key] = value
    return states


def _by_name(states: Mapping[int, dict[str, Tensor]], network: nn.Module) -> dict[str, dict[str, Tensor]]:
    names = [name for name, _ in network.named_parameters()]
    return {names[i]: state for i, state in states.items()}


def _lacks_null_row(config: RunConfig) -> bool:
    return config.dataset.conditional and config.objective.label_drop == 0


def _with_null_row(name: str, value: Tensor, config: RunConfig) -> Tensor:
    """Append an unused null row of zeros to the label table; return any other tensor unchanged."""
    if name == LABEL_TABLE and value.dim() and _lacks_null_row(config):
        return torch.cat([value, torch.zeros_like(value[:1])])
    return value


def _without_null_row(name: str, value: Tensor, config: RunConfig) -> Tensor:
    return value[:-1].clone() if name == LABEL_TABLE and value.dim() and _lacks_null_row(config) else value


def _shape(value: Tensor) -> str:
    return f"{tuple(value.shape)}"
