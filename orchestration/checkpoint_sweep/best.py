"""The best point of a checkpoint sweep as a checkpoint, a configuration file and a model in MLflow."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.checkpoint_sweep.config import Point
from orchestration.checkpoint_sweep.results import key_of
from soflow.config import override, parse, to_dict
from soflow.config_files import to_yaml
from soflow.files import write_atomic

if TYPE_CHECKING:
    from orchestration.checkpoint_sweep.subject import Checkpoint
    from orchestration.tracking.tracker import Tracker

BEST_FOLDER, BEST_FILE, POINT_FILE = "best", "best.yaml", "point.yaml"


def save_best(tracker: Tracker, folder: Path, checkpoint: Checkpoint, point: Point) -> int:
    """Write the point's weights and settings into the folder `best`, and register its model; return its bytes.

    `sample.py` and `evaluate.py` take the folder, `train.py --config` takes its best.yaml.
    """
    from orchestration.tracking.mlflow_model import REQUIRED_ENTRIES, log
    from soflow.models import load_model
    from soflow.training import checkpoints

    state = checkpoints.load(checkpoint.path)
    run = parse(state["config"])
    changes = {path: value for path, value in point.changes().items() if path != "seed"}
    changes["evaluation.diagnostics"] = []  # inference_guidance excludes guidance
    config = parse(override(to_dict(run), changes))
    state["ema"] = load_model(checkpoint.path, device="cpu", ema=point.ema).network.state_dict()
    kept = {name: state[name] for name in (*REQUIRED_ENTRIES, "step", "class_counts") if name in state}
    best = folder / BEST_FOLDER
    for stale in best.glob("*"):
        if stale.is_file():
            stale.unlink()
    path = checkpoints.path_of(best, checkpoint.step)
    best.mkdir(exist_ok=True)
    checkpoints.write(kept | {"config": to_dict(config)}, path)
    write_atomic(best / BEST_FILE, to_yaml(config))
    write_atomic(best / POINT_FILE, to_yaml(point))
    tracker.log_artifact(folder.name, best / BEST_FILE)
    print(f"best:        {best}; more samples: python experiments/sample.py {shlex.quote(str(best))}")
    key = key_of(point)
    name, model = f"{folder.name}-{key[:6]}", folder / f"model-{key}"
    return log(tracker, folder.name, path, model, name, config, checkpoint.step, ema=point.ema)
