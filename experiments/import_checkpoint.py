"""Import a checkpoint of the SoFlow authors and its YAML file as a run, for sampling and further training.

$ python experiments/import_checkpoint.py --checkpoint SoFlow/ckpts/1200000.pt --config SoFlow/config.yaml --name xl2
$ python experiments/sample.py results/xl2

--config also accepts this project's files. To train further with train.py --resume results/xl2, set the data set's
location and a later last step here: --dataset.root FILE --training.total-steps 1300000.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from orchestration.config import TrainConfig
from orchestration.storage import RUN_FILE, check_storage, new_folder
from orchestration.terminal.command_line import fail, read_command_line
from soflow.config_base import ConfigError
from soflow.config_files import to_yaml


class ImportConfig(TrainConfig):
    checkpoint: Path | None = None
    """Checkpoint file to import."""


def main() -> int:
    options = read_command_line(ImportConfig, __doc__)
    if options.checkpoint is None:
        fail("checkpoint: must be a checkpoint file of the SoFlow authors")
    from soflow.training.checkpoints import CheckpointError

    try:
        run = TrainConfig.model_validate(options.model_dump(exclude={"checkpoint"}))
        folder = new_folder(run)
        check_storage(run.storage)
        step = import_into(folder, options.checkpoint, run)
    except (ConfigError, CheckpointError) as error:
        fail(error)
    again = f"python experiments/sample.py {shlex.quote(str(folder))}"
    print(f"step {step} of {run.training.total_steps} in {folder}; samples: {again}")
    return 0


def import_into(folder: Path, checkpoint: Path, run: TrainConfig) -> int:
    """Write a run's folder as training would, and return the checkpoint's step."""
    import torch

    from orchestration.train import RECORDED_FILE
    from soflow.files import atomic
    from soflow.interop import authors_checkpoint
    from soflow.training import checkpoints
    from soflow.training.build import build_network
    from soflow.training.checkpoints import CheckpointError

    config = run.run
    authors_checkpoint.check_network(config, checkpoint)
    classes = authors_checkpoint.NUM_CLASSES.get(config.dataset.name)
    if classes is None:
        known = ", ".join(authors_checkpoint.NUM_CLASSES)
        raise ConfigError(f"dataset.name = {config.dataset.name}: must be a data set of the authors, one of {known}")
    authors_state = authors_checkpoint.read(checkpoint)
    with torch.device("meta"):
        network = build_network(config, classes)
    state = authors_checkpoint.import_state(authors_state, network, config, checkpoint)
    if not state["step"]:
        raise CheckpointError(f"{checkpoint}: has no finished_steps, the number of optimizer steps of a run")
    with atomic(folder) as partial:
        partial.mkdir()
        (partial / "config.yaml").write_text(to_yaml(config))
        checkpoints.save(state, partial, state["step"])
        (partial / RUN_FILE).write_text(to_yaml(run))
        (partial / RECORDED_FILE).write_text(str(state["step"]))
    return state["step"]


if __name__ == "__main__":
    sys.exit(main())
