"""Check and time this project on a machine with CUDA; write docs/gpu.json, and docs/gpu.md from it.

Exit codes: 0 if all checks passed, 1 if one failed, 2 without CUDA.

$ make gpu
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
    options = parser.parse_args()
    # Read by cuBLAS at its start: without it, torch's deterministic algorithms exclude matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if not torch.cuda.is_available():
        print(NO_CUDA, file=sys.stderr)
        return 2
    from benchmarks.gpu import page
    from benchmarks.gpu.checks import CORRECTNESS, THROUGHPUT, run
    from benchmarks.gpu.results import Outcome, Results, save
    from soflow.files import write_atomic

    def keep(outcomes: list[Outcome]) -> None:
        results = Results(machine, outcomes)
        save(results, FOLDER / "gpu.json")
        write_atomic(FOLDER / "gpu.md", page.with_measured((FOLDER / "gpu.md").read_text(), results))

    device = torch.device("cuda:0")
    machine = {
        "GPU": f"{torch.cuda.get_device_name(device)} × {torch.cuda.device_count()}",
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "",
        "date": datetime.date.today().isoformat(),
    }
    outcomes = run((*CORRECTNESS, *THROUGHPUT), device, options.minutes * 60, keep)
    print(f"{FOLDER / 'gpu.md'} and {FOLDER / 'gpu.json'} have the figures")
    return 1 if Results(machine, outcomes).failed else 0


if __name__ == "__main__":
    sys.exit(main())
