"""Training runs in folders: `soflow.train(config, "results/first")`, `soflow.load_run("results/first")`.

`train` trains in this process. Programs in experiments/ train on Ray's workers, with the same results.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soflow.config import RunConfig, extends, merge, override, parse
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
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
    values: dict[str, Any] = {}
    for layer in layers:
        values = merge(values, override({}, layer) if isinstance(layer, dict) else read_yaml(layer))
    return parse(values)


def train(
    config: RunConfig, folder: str | Path, device: str | None = None, threads: int = 1, progress: bool = True
) -> Run:
    """Train in this process, with evaluations and checkpoints in a folder, and return the finished run.

    An unfinished run in the folder is resumed; a finished one is returned, or extended if `config` has more steps.

    Args:
        folder: folder of the run; reference features are kept beside it, for other runs.
        device: default: CUDA if available.
        threads: CPU threads. The last digits depend on it; programs use one per worker unless they are told otherwise.
        progress: show a progress bar.

    Raises:
        ConfigError: if the folder contains a run of another configuration.
        DataError: if the data are missing or unusable.
        NonFiniteLoss: if training diverged.
    """
    import torch

    from soflow.data import open_source
    from soflow.evaluation.fidelity import Evaluator
    from soflow.models import best_device
    from soflow.training.run import TrainingRun

    folder = Path(folder).absolute()
    done = 0
    if (folder / reports.CONFIG_FILE).exists():
        run = load_run(folder)
        if not extends(config, run.config):
            raise ConfigError(f"folder = {folder}: contains a run of another configuration; choose another folder")
        done = run.reports[-1].step if run.reports else 0
        if done == config.training.total_steps:
            return run
    chosen, source = torch.device(device or best_device()), open_source(config.dataset)
    evaluator = Evaluator(source, config, chosen, folder.parent / REFERENCE_FOLDER)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    training = TrainingRun(config, source, folder, chosen, evaluator, start=done)
    try:
        _advance(training, progress)
    finally:
        torch.set_num_threads(before)
    return Run(folder)


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

        grids = self.reports[-1].grids
        if name not in grids:
            raise ConfigError(f"grid = {name}: must be one of {', '.join(grids)}")
        return open_image(grids[name])

    def model(self, best: bool = False, device: str | None = None) -> Model:
        """Load the newest or the best checkpoint, see `soflow.load_model`."""
        from soflow.models import load_model

        return load_model(self.folder, best, device)
