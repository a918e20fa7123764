"""Export a checkpoint to the layout of the SoFlow authors' programs; the inverse of import_checkpoint.py.

$ python experiments/export_checkpoint.py results/xl2 --out ckpts/1300000.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestration.terminal.command_line import fail, read_command_line
from soflow.config_base import ConfigError, OutputPath, Section


class ExportOptions(Section):
    checkpoint: Path
    """Checkpoint file, or folder of a run or trial (its newest checkpoint is used)."""
    out: OutputPath
    """File to write; the authors' programs read ckpts/STEP.pt in their working_dir."""


def main() -> int:
    options = read_command_line(ExportOptions, __doc__, positional="checkpoint")
    import torch

    from soflow.config import parse
    from soflow.interop import authors_checkpoint
    from soflow.training import checkpoints, trained
    from soflow.training.build import build_network

    try:
        path = checkpoints.find(options.checkpoint)
        state = trained.read(path)
        if not {"network", "optimizer"} <= state.keys():
            raise checkpoints.CheckpointError(
                f"{path}: contains averaged weights only; export a checkpoint of the run that was trained"
            )
        config = parse(state["config"])
        authors_checkpoint.check_network(config, path)
        authors_checkpoint.check_solution(config, path)
    except (checkpoints.CheckpointError, ConfigError) as error:
        fail(error)
    with torch.device("meta"):
        network = build_network(config, state["num_classes"])
    checkpoints.write(authors_checkpoint.export_state(state, network, config), options.out)
    print(f"step {state['step']}: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
