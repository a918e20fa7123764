"""Common entry point of all experiments: from the command line through a sweep to its report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestration.interruption import exit_code, listen
from orchestration.storage import SWEEP_FILE, fetch_to_read, new_folder, resumed_folder
from orchestration.store.location import url_or_path
from orchestration.store.program import is_stored
from orchestration.sweep.cases import Case, parse_case
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.resume import saved_config
from orchestration.sweep.run import run_sweep
from orchestration.terminal.command_line import fail, read_command_line, read_options, validate
from orchestration.terminal.views import stdout_for
from orchestration.tracking.uri import TrackingError
from soflow.config import to_dict
from soflow.config_base import ConfigError, Section
from soflow.config_files import read_yaml
from soflow.data.base import DataError

PRESETS = Path(__file__).parent / "presets"
NEUTRAL = (
    *("name", "resume", "progress", "address", "tracking_uri", "max_concurrent", "trial_retries", "resources"),
    *("wait_for_nodes_s", "tags", "note", "more_seeds"),
)
"""Fields that do not change the question of an experiment."""


class Options(Section):
    """Flags of every experiment besides those of its sweep."""

    scale: Literal["small", "paper"] = "small"
    """small = settings for a laptop; paper = the published settings."""
    dry_run: bool = False
    """Print the training runs, their predicted cost and a command for a cluster, without training."""


@dataclass(frozen=True)
class Experiment:
    """A question and the sweeps that answer it: one for a laptop and one with the published settings.

    Attributes:
        question: the program's docstring, shown by --help, with the hypotheses and the stopping rule.
        name: of the sweep's folder, before the scale; None for a new name each time.
        small, paper: differences from the defaults of a sweep, as nested dictionaries.
        preset: the published training run that `paper` starts from.
        prepare: creates the inputs of the sweep, such as a teacher, and returns the configuration with them; existing
            inputs are reused.
        preview: returns the configuration that `prepare` would return, as far as known without running anything.
    """

    question: str
    name: str | None
    small: dict[str, Any]
    paper: dict[str, Any] = field(default_factory=dict)
    preset: str = "soflow-imagenet256-b4"
    prepare: Callable[[SweepConfig], SweepConfig] | None = None
    preview: Callable[[SweepConfig], SweepConfig] | None = None

    def layers(self, scale: str) -> list[dict[str, Any]]:
        """Return the layers of the configuration; later ones win."""
        if scale == "small":
            return [self.small]
        return [read_yaml(PRESETS / f"{self.preset}.yaml"), {"early_stopping": {"kind": "none"}} | self.paper]


def small_training(total_steps: int, **others: Any) -> dict[str, Any]:
    """Return training settings for small experiments: half the default batch, so that twice as many steps fit."""
    return {"total_steps": total_steps, "report_every": total_steps // 2, "batch_size": 64} | others


def comparison(cases: Sequence[str], seeds: int, **others: Any) -> dict[str, Any]:
    """Return sweep settings that train every case with every seed to its end.

    Args:
        cases: each NAME or NAME:PATH=VALUE,PATH=VALUE.
    """
    parsed = tuple(map(parse_case, cases))
    return {"cases": parsed, "case_seeds": seeds, "early_stopping": {"kind": "none"}} | others


def cases_of(config: SweepConfig) -> dict[str, dict[str, Any]]:
    """Return a copy of the changes of every case by its name."""
    return {case.name: dict(case.changes) for case in config.cases}


def with_cases(config: SweepConfig, cases: dict[str, dict[str, Any]]) -> SweepConfig:
    """Return the configuration with other cases.

    Raises:
        ConfigError: if they are not valid.
    """
    listed = tuple(Case(name=name, changes=changes) for name, changes in cases.items())
    return validate(SweepConfig, to_dict(config) | {"cases": listed})


def launch(experiment: Experiment) -> int:
    """Run or resume an experiment and write its report; return the program's exit code."""
    listen()
    try:
        options, arguments = read_options(Options, sys.argv[1:])
        layers = experiment.layers(options.scale)
        if any(argument.startswith("--cases") for argument in arguments):  # the hypotheses are about other cases
            layers.append({"hypotheses": ()})
        config = read_command_line(SweepConfig, experiment.question, arguments, layers, Options)
        if options.dry_run:
            from experiments.plan import show_plan  # imports torch

            previewed = experiment.preview(config) if experiment.preview else config
            show_plan(previewed, options.scale, sys.argv[1:])
            return 0
        return _run(experiment, _named(experiment, config, options.scale))
    except (ConfigError, DataError, TrackingError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted before the sweep started")
        return exit_code("KILLED")


def _named(experiment: Experiment, config: SweepConfig, scale: str) -> SweepConfig:
    if config.resume is not None or config.name is not None:
        return config
    name = f"{experiment.name}-{scale}" if experiment.name else new_folder(config).name
    return config.model_copy(update={"name": name})


def _run(experiment: Experiment, config: SweepConfig) -> int:
    if config.resume is None:
        if experiment.prepare is not None:
            with stdout_for(config.progress):
                prepared = experiment.prepare(config)
            config = prepared.with_given(config.given)
        config = _resumed_if_it_exists(config)
    status = run_sweep(config, _write_report)
    return exit_code(_confirm(config) if status == "FINISHED" else status)


def _confirm(config: SweepConfig) -> str:
    """Run the confirmation of a finished search, if it is configured; return its status."""
    from orchestration.sweep.confirmation import confirmation  # imports pandas

    folder = resumed_folder(config.storage, config.resume or str(config.name), SWEEP_FILE)
    if not saved_config(folder).confirm:
        return "FINISHED"
    confirming = confirmation(folder)
    if confirming is None:
        print("nothing to confirm: no trial but the default configuration finished")
        return "FINISHED"
    print(f"confirming {len(confirming.cases) - 1} trials on {confirming.case_seeds} new seeds", flush=True)
    given = {path: value for path, value in config.given.items() if path.partition(".")[0] in NEUTRAL[2:]}
    return run_sweep(_resumed_if_it_exists(confirming).with_given(given), _write_report)


def _write_report(folder: Path, attach: Callable[[Path], None]) -> None:
    from dashboards.report import leave_report  # imports pandas

    leave_report(saved_config(folder).resolved_tracking_uri, folder, attach)


def _resumed_if_it_exists(config: SweepConfig) -> SweepConfig:
    """Return a configuration that resumes, if a sweep of this name with the same settings exists.

    Raises:
        ConfigError: if a sweep of this name has other settings.
    """
    folder = config.storage / config.name
    if not (is_stored(folder) or (folder / SWEEP_FILE).exists()):
        return config
    fetch_to_read(folder)
    neutral = {*NEUTRAL, "num_trials"} if config.cases else NEUTRAL
    values, saved_values = (
        {key: value for key, value in to_dict(sweep).items() if key not in neutral}
        for sweep in (config, saved_config(folder))
    )
    if different := [key for key in values if values[key] != saved_values[key]]:
        raise ConfigError(
            f"name = {config.name}: exists in {url_or_path(config.storage)} with other {', '.join(different)}; choose "
            "another --name"
        )
    print(f"resuming {url_or_path(folder)}", file=sys.stderr)
    return config.model_copy(update={"resume": config.name})
