"""Train one image generator, with the same workers, checkpoints and logging as the trials of a sweep.

$ python experiments/train.py
$ python experiments/train.py --config results/NAME/best.yaml --training.total-steps 5000
$ python experiments/train.py --objective flow_matching --dataset fashion_mnist --resources.num-workers 2
$ python experiments/train.py --resume results/NAME
"""

from orchestration.config import TrainConfig
from orchestration.interruption import exit_code, listen
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.tracking.uri import TrackingError
from orchestration.train import train
from soflow.config_base import ConfigError
from soflow.data.base import DataError


def main() -> int:
    listen()
    config = read_command_line(TrainConfig, __doc__)
    try:
        return exit_code(train(config))
    except (ConfigError, DataError, TrackingError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted before the run started")
        return exit_code("KILLED")


if __name__ == "__main__":
    raise SystemExit(main())
