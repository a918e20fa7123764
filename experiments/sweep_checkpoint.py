"""Which EMA length, guidance, sampler and number of steps give the best images of a finished checkpoint?

Nothing is trained: each point is another way to sample from the same weights, or from averages of other lengths that
are made from the run's snapshots (--training.snapshot-every). All points start from the same noise. The best point for
each number of network evaluations and the defaults of the training are then compared on other seeds, on which nothing
was chosen. The same command resumes; with longer lists, or more --num-points, it extends the sweep.

$ python experiments/sweep_checkpoint.py results/NAME
$ python experiments/sweep_checkpoint.py results/NAME/trials/0003 --ema trained 0.05 0.1 0.2 --guidance 1 1.5 2
$ python experiments/sweep_checkpoint.py results/NAME --nfe 2 4 --sampler renoise compose --times 0.3 0.5 0.8,0.5,0.2
$ python experiments/sweep_checkpoint.py results/NAME --search optuna --num-points 60 --goals fid recall evaluations
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestration.checkpoint_sweep.config import CheckpointSweepConfig
from orchestration.interruption import exit_code, listen
from orchestration.storage import REPORT_FILE
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.tracking.uri import TrackingError
from soflow.config_base import ConfigError
from soflow.data.base import DataError


def main() -> int:
    listen()
    config = read_command_line(CheckpointSweepConfig, __doc__, positional="checkpoint")
    from orchestration.checkpoint_sweep.run import run_checkpoint_sweep  # imports torch
    from soflow.training.checkpoints import CheckpointError

    try:
        return exit_code(run_checkpoint_sweep(config, _write_report))
    except (CheckpointError, ConfigError, DataError, TrackingError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted before the first point")
        return exit_code("KILLED")


def _write_report(folder: Path) -> Path | None:
    from dashboards.checkpoint.page import checkpoint_page  # imports plotly
    from dashboards.labels import one_line_reason
    from soflow.files import write_atomic

    output = folder / REPORT_FILE
    try:
        write_atomic(output, checkpoint_page(folder))
    except Exception as error:  # a failed report does not change how the sweep ended
        print(f"the report is incomplete ({one_line_reason(error, 300)}); the same command tries again")
        return None
    return output


if __name__ == "__main__":
    sys.exit(main())
