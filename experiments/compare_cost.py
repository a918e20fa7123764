"""How much more does MeanFlow's loss with a Jacobian-vector product cost than SoFlow's without one, on this machine?

Measures time by phase, peak memory and operations of the optimizer steps of both, MeanFlow in each of its forms (see
--variants), and of flow matching. Every variant runs in a separate process; the variants are measured in turn, round
after round, so that drift of the machine affects all equally. Ratios are medians over rounds of the ratio within a
round; their intervals are order statistics, with the coverage that the table states: from the least to the largest of
seven rounds, 98 %.

$ python experiments/compare_cost.py
$ python experiments/compare_cost.py --networks DiT-B/4 --dataset latents --dataset.image-size 256 --batches 32 256
$ python experiments/compare_cost.py --guidance True False --precisions fp32 bf16 --compiled False True
"""

from orchestration.cost_study.config import CostStudyConfig
from orchestration.cost_study.run import run_cost_study
from orchestration.interruption import exit_code, listen
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.tracking.uri import TrackingError
from soflow.config_base import ConfigError


def main() -> int:
    listen()
    config = read_command_line(CostStudyConfig, __doc__)
    try:
        return exit_code(run_cost_study(config))
    except (ConfigError, TrackingError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted before the first measurement")
        return exit_code("KILLED")


if __name__ == "__main__":
    raise SystemExit(main())
