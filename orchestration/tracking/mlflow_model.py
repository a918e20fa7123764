"""A trained generator as an MLflow model: `mlflow.pyfunc.load_model(uri).predict(...)` draws images.

    model = mlflow.pyfunc.load_model("models:/m-…")
    images = model.predict(pandas.DataFrame({"label": [0, 1, 2]}), params={"seed": 7, "nfe": 2})   # uint8 [3, C, H, W]

The model's folder holds the averaged weights as a checkpoint, read with weights_only, and the name of this module:
nothing in it is pickled code. So whoever loads it needs this package, at the commit in the model's tags.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestration.tracking.environment import git_commit
from orchestration.tracking.notes import model_note
from soflow import codecs
from soflow.config import flatten, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
from soflow.evaluation.generated import sampler_for
from soflow.files import atomic
from soflow.objectives.base import normal
from soflow.randomness import generator
from soflow.sampling import sample
from soflow.training import checkpoints
from soflow.training.reports import CONFIG_FILE
from soflow.training.trained import load_sampler

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from orchestration.tracking.tracker import Tracker

WEIGHTS_FILE = "sampler.pt"
NEEDED = ("ema", "config", "num_classes")
"""What sampling needs of a checkpoint; the rest, optimiser included, is three times as much."""
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pandas", "pydantic", "safetensors")


class ImageSampler:
    """What MLflow calls.

    Args:
        path: a checkpoint.
    """

    def __init__(self, path: Path):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config, self.objective, self.network = load_sampler(path, self.device)
        self.codec = codecs.build(self.config.dataset, self.device)

    def predict(self, labels: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """uint8 images [N, C, H, W], one per row, from noise that depends on the seed and N alone.

        With the labels of a run's sample grid and seed 0 these are the images of the grid.

        Args:
            labels: a column `label` of classes; a network without classes does not heed them.
            params: `seed` (0) of the noise, `nfe` (1) network evaluations per image.

        Raises:
            ValueError: naming the label, or the number of evaluations, that cannot be.
        """
        params = {"seed": 0, "nfe": 1} | (params or {})
        seed, nfe = int(params["seed"]), int(params["nfe"])
        if nfe < 1:
            raise ValueError(f"nfe = {nfe}: must be at least 1")
        random = generator(self.device, seed, "grid")
        noise = normal((len(labels), *self.config.dataset.sample_shape), random)
        sampler = sampler_for(self.config, self.objective, nfe)
        samples = sample(self.objective, self.network, noise, self._classes(labels), nfe, sampler, random)
        return self.codec.decode(samples).cpu().numpy()

    def _classes(self, labels: pd.DataFrame) -> torch.Tensor:
        none = self.objective.num_classes
        if not self.config.dataset.conditional:
            return torch.full((len(labels),), none, device=self.device)
        classes = torch.tensor(labels["label"].to_numpy(), dtype=torch.long, device=self.device)
        wrong = classes[(classes < 0) | (classes >= none)]
        if len(wrong):
            raise ValueError(f"label = {wrong[0].item()}: must be a class from 0 to {none - 1}")
        return classes


def _load_pyfunc(path: str) -> ImageSampler:
    """MLflow's entry: `path` is what `write_model` gave as data."""
    return ImageSampler(Path(path))


def write_model(checkpoint: Path, folder: Path) -> None:
    """Make a folder that mlflow.pyfunc.load_model reads, whole or not at all; one that is there is left as it is.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged.
        OSError: if the disk refuses.
    """
    import mlflow.pyfunc

    if folder.exists():
        return
    state = checkpoints.load(checkpoint)
    with atomic(folder) as partial, tempfile.TemporaryDirectory() as weights, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow asks for an input example; the model's description has one
        torch.save({name: state[name] for name in NEEDED}, Path(weights) / WEIGHTS_FILE)
        mlflow.pyfunc.save_model(
            partial,
            loader_module=__name__,
            data_path=Path(weights) / WEIGHTS_FILE,
            signature=_signature(),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in LIBRARIES],
        )


def _signature():
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    params = ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("nfe", "long", 1)])
    return ModelSignature(inputs=Schema([ColSpec("long", "label")]), params=params)


def register(tracker: Tracker, key: str, folder: Path, name: str) -> int:
    """Make a model of a run's last checkpoint and register it; says so if that cannot be done.

    Args:
        key: of the run in MLflow.
        folder: the run's, where the model's own folder will be.

    Returns:
        The bytes to upload.
    """
    step = checkpoints.latest_step(folder)
    path = folder / f"model-{step:08d}"
    try:
        write_model(checkpoints.path_of(folder, step), path)
        config = parse(read_yaml(folder / CONFIG_FILE))
    except (checkpoints.CheckpointError, ConfigError, OSError) as error:
        print(f"the model of {folder} cannot be registered in MLflow: {error}", file=sys.stderr)
        return 0
    commit = git_commit(Path(__file__).parent)
    tags = {"objective": config.objective.name, "dataset": config.dataset.name, "git_commit": commit}
    tracker.log_model(key, path, name, step, flatten(to_dict(config)), tags, model_note(step, commit))
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
