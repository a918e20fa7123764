"""Trained generators as MLflow models: `mlflow.pyfunc.load_model(uri).predict(...)` generates images.

    model = mlflow.pyfunc.load_model("models:/m-…")
    images = model.predict(pandas.DataFrame({"label": [0, 1, 2]}), params={"seed": 7, "nfe": 2})   # uint8 [3, C, H, W]

The model's folder contains the averaged weights as a checkpoint, loaded with weights_only, and the name of this module,
but no pickled code. Loading it therefore requires this package, at the commit in the model's tags.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestration.tracking.environment import git_commit
from orchestration.tracking.notes import model_note
from soflow import codecs
from soflow.config import RunConfig, flatten, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
from soflow.evaluation.generated import evaluation_nfe, sampler_for, sampling_options
from soflow.files import atomic
from soflow.objectives.base import normals
from soflow.objectives.registry import OBJECTIVES
from soflow.plugins import load
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
REQUIRED_ENTRIES = ("ema", "config", "num_classes")
"""Entries of a checkpoint required for sampling; the others, optimizer included, are three times as large."""
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pandas", "pydantic", "safetensors")


class ImageSampler:
    """Model object with the `predict` method that MLflow calls.

    Args:
        path: checkpoint file.
    """

    def __init__(self, path: Path):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config, self.objective, self.network = load_sampler(path, self.device)
        self.codec = codecs.build(self.config.dataset, self.device)

    def predict(self, labels: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """Generate uint8 images [N, C, H, W], one per row, from noise that depends only on the seed and N.

        The labels of a run's sample grid and seed 0 give the images of that grid.

        Args:
            labels: table with a column `label` of classes; unconditional networks ignore it.
            params: `seed` (0) of the noise, and `nfe`, the number of network evaluations per image; its default is the
                first that the run evaluated.

        Raises:
            ValueError: naming the invalid label or number of evaluations.
        """
        params = params or {}
        seed = int(params.get("seed", 0))
        nfe = int(params["nfe"]) if "nfe" in params else evaluation_nfe(self.config, self.objective)[0]
        if nfe < 1:
            raise ValueError(f"nfe = {nfe}: must be at least 1")
        shape = (len(labels), *self.config.dataset.sample_shape)
        fresh = normals(shape, generator(self.device, seed, "grid"))
        noise, sampler = next(fresh), sampler_for(self.config, self.objective, nfe)
        options = sampling_options(self.config)
        samples = sample(self.objective, self.network, noise, self._classes(labels), nfe, sampler, fresh, options)
        return self.codec.decode(samples).cpu().numpy()

    def _classes(self, labels: pd.DataFrame) -> torch.Tensor:
        null = self.objective.num_classes
        if not self.config.dataset.conditional:
            return torch.full((len(labels),), null, device=self.device)
        classes = torch.tensor(labels["label"].to_numpy(), dtype=torch.long, device=self.device)
        invalid = classes[(classes < 0) | (classes >= null)]
        if len(invalid):
            raise ValueError(f"label = {invalid[0].item()}: must be a class from 0 to {null - 1}")
        return classes


def _load_pyfunc(path: str) -> ImageSampler:
    """Load the model for MLflow, from the file that `write_model` passed as data."""
    return ImageSampler(Path(path))


def write_model(checkpoint: Path, folder: Path) -> None:
    """Write a folder for mlflow.pyfunc.load_model atomically; an existing folder is not changed.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged.
        OSError: if the folder cannot be written.
    """
    import mlflow.pyfunc

    if folder.exists():
        return
    state = checkpoints.load(checkpoint)
    config = parse(state["config"])
    nfe = evaluation_nfe(config, load(OBJECTIVES[config.objective.name].implementation))[0]
    with (
        atomic(folder) as partial,
        tempfile.TemporaryDirectory() as weights,
        warnings.catch_warnings(),
        _requirements_unchecked(),
    ):
        warnings.simplefilter("ignore")  # MLflow recommends an input example; the model's description contains one
        torch.save({name: state[name] for name in REQUIRED_ENTRIES}, Path(weights) / WEIGHTS_FILE)
        mlflow.pyfunc.save_model(
            partial,
            loader_module=__name__,
            data_path=Path(weights) / WEIGHTS_FILE,
            signature=_signature(nfe),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in LIBRARIES],
        )


@contextmanager
def _requirements_unchecked() -> Iterator[None]:
    """Let MLflow not compare requirements with what is installed, from which they were just read.

    It would list every file of every installed package, which takes seconds. Only one thread may write models.
    """
    from mlflow.utils import environment

    check = environment.warn_dependency_requirement_mismatches
    environment.warn_dependency_requirement_mismatches = lambda requirements: None
    try:
        yield
    finally:
        environment.warn_dependency_requirement_mismatches = check


def _signature(nfe: int):
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    params = ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("nfe", "long", nfe)])
    return ModelSignature(inputs=Schema([ColSpec("long", "label")]), params=params)


def register(tracker: Tracker, key: str, folder: Path, name: str) -> int:
    """Build a model from a run's last checkpoint and register it; on failure print the reason to stderr.

    Args:
        key: key of the run in the tracker.
        folder: folder of the run, in which the model's folder is created.

    Returns:
        Number of bytes to upload, 0 on failure.
    """
    step = checkpoints.latest_step(folder)
    try:
        config = parse(read_yaml(folder / CONFIG_FILE))
        return log(tracker, key, checkpoints.path_of(folder, step), folder / f"model-{step:08d}", name, config, step)
    except (checkpoints.CheckpointError, ConfigError, OSError) as error:
        print(f"warning: the model of {folder} cannot be registered in MLflow: {error}", file=sys.stderr)
        return 0


def log(
    tracker: Tracker, key: str, checkpoint: Path, path: Path, name: str, config: RunConfig, step: int, **tags: str
) -> int:
    """Build a checkpoint's model in the folder `path` and register it, with further tags; return the bytes to upload.

    Raises:
        CheckpointError, OSError: as `write_model`.
    """
    write_model(checkpoint, path)
    commit = git_commit(Path(__file__).parent)
    tags = {"objective": config.objective.name, "dataset": config.dataset.name, "git_commit": commit} | tags
    tracker.log_model(key, path, name, step, flatten(to_dict(config)), tags, model_note(step, commit))
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
