"""The checkpoint of a sweep: what it allows, and the folder of its points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.checkpoint_sweep.config import CheckpointSweepConfig, Point
from orchestration.checkpoint_sweep.saved import CONFIG_FILE
from orchestration.checkpoint_sweep.space import LENGTHS, Space, space_of
from soflow.config import RunConfig, flatten, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import dump_yaml, read_yaml
from soflow.data import open_source
from soflow.evaluation.feature_networks import weights_path
from soflow.evaluation.registry import feature_network_info
from soflow.files import sha256, write_atomic
from soflow.posthoc_ema import Average, average_of
from soflow.training import checkpoints, trained
from soflow.training.build import build_objective
from soflow.training.snapshots import MOST_ERROR, Snapshots


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint that a sweep samples from."""

    path: Path
    config: RunConfig
    """Of its run, with the sweep's changes to how it is measured."""
    step: int
    weights: str
    """Hash of the file."""
    space: Space


def open_checkpoint(config: CheckpointSweepConfig) -> Checkpoint:
    """Read the checkpoint and check every point that is known before the search.

    Raises:
        CheckpointError: if it is missing, damaged or of another kind.
        ConfigError: in one line, if a point is impossible for it, or a goal is not measured.
    """
    path = checkpoints.find(config.checkpoint, config.best).absolute()
    state = trained.read(path)
    run, changes = parse(state["config"]), config.evaluation_changes()
    changes.setdefault("evaluation.precision_recall", not (config.reference or run.evaluation.reference))
    measured = parse(override(to_dict(run), changes | {"evaluation.diagnostics": []}))
    step, lengths = state.get("step", 0), []
    averages = [average for text in config.ema or () if (average := average_of(text)) is not None]
    try:
        snapshots = Snapshots(path.parent, run, step)
    except ConfigError:
        if averages:
            raise
    else:
        for average in averages:
            snapshots.check(average)
        lengths = [text for text in LENGTHS if snapshots.reconstruction(Average(float(text))).error <= MOST_ERROR]
        if config.ema is None and len(lengths) < len(LENGTHS):
            left_out = ", ".join(text for text in LENGTHS if text not in lengths)
            print(f"averages of the lengths {left_out} are left out: there are too few snapshots for them")
    space = space_of(config, run, build_objective(run, state["num_classes"]), lengths)
    for point in space.grid():
        parse(override(to_dict(measured), point.changes()))
    _check_goals(config, measured)
    return Checkpoint(path, measured, step, sha256(path), space)


def _check_goals(config: CheckpointSweepConfig, run: RunConfig) -> None:
    """Check that every goal is measured.

    Raises:
        ConfigError: naming the goal, and what it needs.
    """
    data = "the features of the data, which a file of statistics lacks" if run.evaluation.reference else ""
    needs = {
        "kid": data,
        "cmmd": data if run.feature_network == "clip" else "feature_network = clip",
        **dict.fromkeys(
            ("precision", "recall", "density", "coverage"),
            "" if run.evaluation.precision_recall else "precision_recall",
        ),
        "class_consistency": "" if run.dataset.conditional else "a network with labels",
    }
    for goal in config.goals:
        if need := needs.get(goal):
            raise ConfigError(f"goals = {goal}: needs {need}")
        if goal == "class_consistency":  # only then are the data read here
            fingerprint = open_source(run.dataset).fingerprint
            if not feature_network_info(run.feature_network).classifies(run.dataset.name, fingerprint):
                raise ConfigError(f"goals = {goal}: needs a feature_network that classifies the dataset")


def default_name(checkpoint: Checkpoint) -> str:
    """Name a sweep after the run or trial, and the step."""
    run = checkpoint.path.parent
    name = f"{run.parent.parent.name}-trial-{run.name}" if run.parent.name == "trials" else run.name
    return f"{name}-step-{checkpoint.step}-points"


def note_config(folder: Path, config: CheckpointSweepConfig, checkpoint: Checkpoint) -> None:
    """Save the configuration; refuse a folder whose points were measured otherwise.

    Raises:
        ConfigError: naming what differs.
    """
    path, run, evaluation = folder / CONFIG_FILE, to_dict(checkpoint.config), checkpoint.config.evaluation
    del run["evaluation"]["batch_size"]  # changes nothing
    common = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "weights": checkpoint.weights[:12],
        "seed": config.seed,
        "features": sha256(weights_path(checkpoint.config.feature_network, evaluation.feature_weights))[:12],
        "run": run,
    }
    if path.exists():
        now, before = (flatten(values) for values in (common, read_yaml(path)))
        for key, value in now.items():
            if value != before.get(key):
                raise ConfigError(
                    f"{key.removeprefix('run.')} = {value}: the points of {folder.name} were measured with "
                    f"{before.get(key)}; choose another --name"
                )
    elif any(child.name[0] != "." for child in folder.iterdir()):
        raise ConfigError(f"name = {folder.name}: is taken in {folder.parent}; choose another --name")
    space = {name: _listed(value) for name, value in vars(checkpoint.space).items()}
    write_atomic(path, dump_yaml(common | {"space": space, "config": to_dict(config)}))


def _listed(value: Any) -> Any:
    if isinstance(value, Point):
        return to_dict(value)
    return [_listed(inner) for inner in value] if isinstance(value, tuple) else value
