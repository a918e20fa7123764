"""Training runs in folders: `soflow.train(config, "results/first")`, `soflow.load_run("results/first")`.

`train` trains in this process. Programs in experiments/ train on Ray's workers, with the same results.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soflow.config import RunConfig, check_training, extends, flatten, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_layers, read_yaml
from soflow.files import LOCK_FILE
from soflow.posthoc_ema import TRAINED
from soflow.training import reports
from soflow.training.reports import Report

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from soflow.models import Model
    from soflow.training.run import TrainingRun


REFERENCE_FOLDER = "reference"


def load_config(*layers: str | Path | dict[str, Any]) -> RunConfig:
    """Read a configuration from layers, of which later ones win: YAML files, and dictionaries of values by path.

    Example: `load_config("run.yaml", {"objective.name": "meanflow", "training.total_steps": 300})`.

    Raises:
        ConfigError: with a line per fault, which names the field, its value and the allowed values.
    """
    return parse(read_layers(layers))


def train(
    config: RunConfig, folder: str | Path, device: str | None = None, threads: int = 1, progress: bool = True
) -> Run:
    """Train in this process, with evaluations and checkpoints in a folder, and return the finished run.

    An unfinished run in the folder is resumed. A finished one is returned, or extended if `config` has more steps and
    nothing in its objective follows training progress, as the default gap schedule does.

    Args:
        folder: folder of the run; reference features are kept beside it, for other runs.
        device: default: CUDA if available.
        threads: CPU threads. The last digits depend on it; programs use one per worker by default.
        progress: show a progress bar.

    Raises:
        ConfigError: if the folder contains a run of another configuration, or another process trains there.
        DataError: if the data are missing or unusable.
        NonFiniteLoss: if training diverged.
    """
    import torch
    from filelock import FileLock, Timeout

    from soflow.data import open_source
    from soflow.evaluation.fidelity import Evaluator
    from soflow.models import best_device
    from soflow.training.run import TrainingRun

    folder = Path(folder).absolute()
    check_training(config)
    done = _steps_done(config, folder)
    if done == config.training.total_steps:
        return Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with FileLock(folder / LOCK_FILE, blocking=False):
            chosen, source = torch.device(device or best_device()), open_source(config.dataset)
            evaluator = Evaluator(source, config, chosen, folder.parent / REFERENCE_FOLDER)
            _advance(TrainingRun(config, source, folder, chosen, evaluator, start=done), progress)
    except Timeout:
        raise ConfigError(f"folder = {folder}: another process trains in it; choose another folder") from None
    finally:
        torch.set_num_threads(before)
    return Run(folder)


def _steps_done(config: RunConfig, folder: Path) -> int:
    """Return the last reported step of a run in the folder, 0 for a new one; refuse a run of another configuration."""
    if not (folder / reports.CONFIG_FILE).exists():
        return 0
    run = load_run(folder)
    if not run.reports or extends(config, run.config):
        return run.reports[-1].step if run.reports else 0
    before, now = (flatten(to_dict(other)) for other in (run.config, config))
    path = next(path for path in {**before, **now} if before.get(path) != now.get(path))
    schedule = config.objective.progress_schedule
    why = f" ({schedule} depends on it)" if path == "training.total_steps" and schedule else ""
    raise ConfigError(
        f"folder = {folder}: contains a run with {path} = {before.get(path)}, not {now.get(path)}{why}; choose another "
        "folder"
    )


def _advance(run: TrainingRun, progress: bool) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        trainer = run.trainer
        task = bar.add_task(f"step {trainer.step}", total=run.config.training.total_steps, completed=trainer.step)
        while not run.finished:
            report = run.advance()
            assert report is not None  # there is one worker
            text = f"step {report.step}, FID {report.metrics['fid']:.4g}"
            bar.update(task, completed=report.step, description=text)


def load_run(folder: str | Path) -> Run:
    """Load a run or a sweep's trial, finished or not.

    Raises:
        ConfigError: if the folder contains no run.
    """
    folder = Path(folder)
    if not (folder / reports.CONFIG_FILE).exists():
        raise ConfigError(f"folder = {folder}: contains no run, there is no {reports.CONFIG_FILE} in it")
    return Run(folder)


class Run:
    """Training run in a folder.

    Attributes:
        folder: contains config.yaml, reports, checkpoints and sample grids.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __repr__(self) -> str:
        done = self.reports[-1].step if self.reports else 0
        return f"<run {self.folder.name}: step {done} of {self.config.training.total_steps}>"

    @functools.cached_property
    def config(self) -> RunConfig:
        return parse(read_yaml(self.folder / reports.CONFIG_FILE))

    @property
    def reports(self) -> list[Report]:
        """Reports in the order of their steps."""
        return reports.load_reports(self.folder)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last report; empty before the first."""
        return self.reports[-1].metrics if self.reports else {}

    def table(self) -> pd.DataFrame:
        """Return the metrics of all reports, a row per step."""
        import pandas as pd

        rows = {report.step: report.metrics for report in self.reports}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")

    def curve(self) -> pd.DataFrame:
        """Return the learning curves, a row per step that was logged."""
        import pandas as pd

        rows = {step: values for report in self.reports for step, values in report.curve}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")

    def grid(self, name: str = "samples") -> Image:
        """Return a sample grid of the last report: "samples", "samples_2nfe", … or "real"."""
        from PIL.Image import open as open_image

        if not self.reports:
            raise ConfigError(f"folder = {self.folder}: has no report yet")
        grids = self.reports[-1].grids
        if name not in grids:
            raise ConfigError(f"grid = {name}: must be one of {', '.join(grids)}")
        return open_image(grids[name])

    def model(self, best: bool = False, device: str | None = None, ema: str = TRAINED) -> Model:
        """Load the newest or the best checkpoint, see `soflow.load_model`."""
        from soflow.models import load_model

        return load_model(self.folder, best, device, ema)
