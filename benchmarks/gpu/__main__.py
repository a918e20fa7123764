"""Check and time this project on a machine with CUDA; write docs/gpu.json, and docs/gpu.md from it.

Exit codes: 0 if all checks passed, 1 if one failed, 2 without CUDA.

$ make gpu
$ make gpu ARGS="--only resume --only compiled"
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path

NO_CUDA = (
    "make gpu: torch finds no CUDA device; run it on a machine with an NVIDIA GPU, its driver and a CUDA build of torch"
)
FOLDER = Path(__file__).parents[2] / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5, help="time budget of all checks (default 7.5)")
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="run the checks with TEXT in their names, repeatable; others keep their outcomes from this machine",
    )
    options = parser.parse_args()
    # Read by cuBLAS at its start: without it, torch's deterministic algorithms exclude matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if not torch.cuda.is_available():
        print(NO_CUDA, file=sys.stderr)
        return 2
    from benchmarks.gpu import page
    from benchmarks.gpu.checks import CHECKS, run
    from benchmarks.gpu.results import Outcome, Results, earlier, merged, save
    from soflow.files import write_atomic

    def keep(outcomes: list[Outcome]) -> None:
        results = Results(machine, merged(outcomes, before, [check.name for check in CHECKS]))
        save(results, FOLDER / "gpu.json")
        write_atomic(FOLDER / "gpu.md", page.with_measured((FOLDER / "gpu.md").read_text(), results))

    device = torch.device("cuda:0")
    machine = {
        "GPU": f"{torch.cuda.get_device_name(device)} × {torch.cuda.device_count()}",
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "",
        "date": datetime.date.today().isoformat(),
    }
    chosen = [check for check in CHECKS if not options.only or any(text in check.name for text in options.only)]
    if not chosen:
        parser.error(f"--only: no check has {' or '.join(options.only)} in its name")
    before = earlier(FOLDER / "gpu.json", machine) if options.only else []
    outcomes = run(chosen, device, options.minutes * 60, keep)
    print(f"{FOLDER / 'gpu.md'} and {FOLDER / 'gpu.json'} have the figures")
    return 1 if Results(machine, outcomes).failed else 0


if __name__ == "__main__":
    sys.exit(main())
