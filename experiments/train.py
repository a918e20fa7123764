"""Train one image generator, through the same workers, checkpoints and records as a sweep's trials.

$ python experiments/train.py
$ python experiments/train.py --config results/NAME/best.yaml --training.total-steps 5000
$ python experiments/train.py --objective flow_matching --dataset fashion_mnist --resources.num-workers 2
$ python experiments/train.py --resume results/NAME
"""

from orchestration.command_line import fail, read_command_line
from orchestration.config import EXIT_CODES, TrainConfig
from orchestration.single import train
from orchestration.spool import TrackingError
from soflow.data import DataError
from soflow.sections import ConfigError


def main() -> int:
    config = read_command_line(TrainConfig, __doc__)
    try:
        return EXIT_CODES[train(config)]
    except (ConfigError, DataError, TrackingError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted before the run began")
        return EXIT_CODES["KILLED"]


if __name__ == "__main__":
    raise SystemExit(main())
