"""Export a checkpoint to the layout of the SoFlow authors' programs; the inverse of import_checkpoint.py.

$ python experiments/export_checkpoint.py results/xl2 --out ckpts/1300000.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestration.terminal.command_line import fail, read_command_line
from soflow.config_base import Section


class ExportOptions(Section):
    checkpoint: Path
    """Checkpoint file, or folder of a run or trial (its newest checkpoint is used)."""
    out: Path
    """File to write; the authors' programs read ckpts/STEP.pt in their working_dir."""


def main() -> int:
    options = read_command_line(ExportOptions, __doc__, positional="checkpoint")
    import torch

    from soflow.config import parse
    from soflow.interop import authors_checkpoint
    from soflow.training import checkpoints
    from soflow.training.build import build_network

    path = options.checkpoint
    if path.is_dir():
        path = checkpoints.path_of(path, checkpoints.latest_step(path))
    try:
        state = checkpoints.load(path)
        config = parse(state["config"])
        authors_checkpoint.check_network(config, path)
        authors_checkpoint.check_solution(config, path)
    except checkpoints.CheckpointError as error:
        fail(error)
    with torch.device("meta"):
        network = build_network(config, state["num_classes"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(authors_checkpoint.export_state(state, network, config), options.out)
    print(f"step {state['step']}: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
