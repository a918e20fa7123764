"""Which λ, gap schedule r(k, K), guidance strength w and velocity mix m give the best one-step images?

Searches the configuration with Ray Tune and Optuna, trains every trial with Ray Train, records everything in MLflow,
and ends with a ranking and the best configuration as a file.

$ python experiments/sweep_schedule.py
$ python experiments/sweep_schedule.py --objective meanflow --num-trials 20
$ python experiments/sweep_schedule.py --search objective.r_end=0.0005:0.05:log objective.velocity_mix=0:1
$ python experiments/sweep_schedule.py --resume NAME
"""

from orchestration.command_line import fail, read_command_line
from orchestration.config import EXIT_CODES, SweepConfig
from orchestration.spool import TrackingError
from orchestration.sweep import run_sweep
from soflow.data import DataError
from soflow.sections import ConfigError


def main() -> int:
    config = read_command_line(SweepConfig, __doc__)
    try:
        return EXIT_CODES[run_sweep(config)]
    except (ConfigError, DataError, TrackingError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted before the sweep began")
        return EXIT_CODES["KILLED"]


if __name__ == "__main__":
    raise SystemExit(main())
