"""What the studies of this folder share: from a command line through a sweep to its report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.config import EXIT_CODES, SweepConfig
from orchestration.storage import SWEEP_FILE, new_folder
from orchestration.sweep.resume import own_config
from orchestration.sweep.run import run_sweep
from orchestration.terminal.command_line import fail, read_command_line, validate
from orchestration.terminal.views import stdout_for
from orchestration.tracking.uri import TrackingError
from soflow.config import to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
from soflow.data.base import DataError

PRESETS = Path(__file__).parent / "presets"
FREE = ("name", "resume", "progress", "address", "tracking_uri", "max_concurrent", "trial_retries", "resources")
"""Fields that leave a study the study that it was."""


@dataclass(frozen=True)
class Study:
    """A question and the sweeps that answer it, one on a laptop and one with the published settings.

    Attributes:
        question: what --help says first; it also states what is held to be true, and when the study ends.
        name: of the sweep's folder, with the scale behind it; None for a new one each time.
        small, paper: what differs from a sweep's defaults, as nested dictionaries.
        preset: the published training run that `paper` starts from.
        prepare: what has to be there before the sweep, such as a teacher; gives the configuration with it put in, and
            does nothing twice.
        foreseen: the configuration that `prepare` would give, as far as it can be told with nothing run.
    """

    question: str
    name: str | None
    small: dict[str, Any]
    paper: dict[str, Any] = field(default_factory=dict)
    preset: str = "soflow-imagenet256-b4"
    prepare: Callable[[SweepConfig], SweepConfig] | None = None
    foreseen: Callable[[SweepConfig], SweepConfig] | None = None

    def layers(self, scale: str) -> list[dict[str, Any]]:
        """Of its configuration, the later ones over the earlier ones."""
        if scale == "small":
            return [self.small]
        return [read_yaml(PRESETS / f"{self.preset}.yaml"), {"early_stopping": {"kind": "none"}} | self.paper]


def small_training(total_steps: int, **others: Any) -> dict[str, Any]:
    """Training settings of small studies: half the default's batch, so that twice as many steps fit into their time."""
    return {"total_steps": total_steps, "report_every": total_steps // 2, "batch_size": 64} | others


def comparison(cases: tuple[str, ...], seeds: int, **others: Any) -> dict[str, Any]:
    """Settings that train every case with every seed to its end."""
    return {"cases": cases, "case_seeds": seeds, "early_stopping": {"kind": "none"}} | others


def with_cases(config: SweepConfig, cases: dict[str, dict[str, Any]]) -> SweepConfig:
    """The configuration with other cases, each by its name and changed values.

    Raises:
        ConfigError: if they cannot be.
    """
    return validate(SweepConfig, to_dict(config) | {"cases": cases})


def launch(study: Study) -> int:
    """Run a study, or go on with it, and leave its report; the program's exit code."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--scale", choices=("small", "paper"), default="small")
    own.add_argument("--dry-run", action="store_true")
    try:
        given, arguments = own.parse_known_args()
        description = f"{study.question}\n\n{OWN_FLAGS}"
        layers = study.layers(given.scale)
        if "--cases" in arguments:  # other cases than the study's hypotheses are about
            layers.append({"hypotheses": ()})
        config = read_command_line(SweepConfig, description, arguments, layers)
        if given.dry_run:
            from experiments.plan import show_plan  # imports torch

            show_plan(study.foreseen(config) if study.foreseen else config, given.scale, sys.argv[1:])
            return 0
        return _run(study, _named(study, config, given.scale))
    except (ConfigError, DataError, TrackingError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted before the sweep began")
        return EXIT_CODES["KILLED"]


OWN_FLAGS = (
    "--scale paper takes the published settings in place of those for a laptop; --dry-run says what would be trained, "
    "what it costs and how to launch it on a cluster, and trains nothing. A study that was interrupted goes on when it "
    "is started again."
)


def _named(study: Study, config: SweepConfig, scale: str) -> SweepConfig:
    if config.resume is not None or config.name is not None:
        return config
    name = f"{study.name}-{scale}" if study.name else new_folder(config).name
    return config.model_copy(update={"name": name})


def _run(study: Study, config: SweepConfig) -> int:
    if config.resume is None:
        if study.prepare is not None:
            with stdout_for(config.progress):
                config = study.prepare(config)
        config = _taken_up(config)
    status = run_sweep(config)
    if status != "KILLED":
        from dashboards.report import leave_report  # imports pandas

        folder = (config.storage / (config.resume or config.name)).absolute()
        with stdout_for(config.progress):
            leave_report(own_config(folder, {}).resolved_tracking_uri, folder)
    return EXIT_CODES[status]


def _taken_up(config: SweepConfig) -> SweepConfig:
    """The configuration as one that goes on, if there is a sweep of this name that does the same.

    Raises:
        ConfigError: if there is one that does something else.
    """
    folder = config.storage / config.name
    if not (folder / SWEEP_FILE).exists():
        return config
    ours, theirs = (
        {key: value for key, value in to_dict(each).items() if key not in FREE}
        for each in (config, own_config(folder, {}))
    )
    if different := [key for key in ours if ours[key] != theirs[key]]:
        raise ConfigError(
            f"name = {config.name}: is in {config.storage} with other {', '.join(different)}; give another --name"
        )
    print(f"going on with {folder}", file=sys.stderr)
    return config.model_copy(update={"resume": config.name})
