"""Does a whole sweep run on halves of a GPU? The program, with Ray, Optuna and MLflow, two trials at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.gpu.results import Figure
from orchestration.sweep.results import load_sweep

REASON = "every trial ends finished, with a finite FID, on the device that was asked for"
REPOSITORY = Path(__file__).parents[2]
TRIALS, STEPS = 4, 400
SECONDS = 240
"""Time limit of the sweep."""


def on_half_gpus(device: torch.device, trials: int = TRIALS, steps: int = STEPS) -> list[Figure]:
    """Run `sweep_schedule.py` on digits, with half a GPU per trial, or none on a CPU.

    Raises:
        RuntimeError: if the program fails, with the last line that it printed.
    """
    cuda = device.type == "cuda"
    expected = torch.cuda.get_device_name(device) if cuda else None
    with tempfile.TemporaryDirectory() as storage:
        began = time.perf_counter()
        command = [
            *(sys.executable, "experiments/sweep_schedule.py", "--storage", storage, "--name", "half"),
            *("--num-trials", str(trials), "--training.total-steps", str(steps), "--early-stopping.kind", "none"),
            *("--resources.gpus-per-worker", "0.5" if cuda else "0", "--evaluation.num-samples", "500"),
        ]
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.getenv("PYTHONPATH"))))
        program = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = program.communicate(timeout=SECONDS)
        finally:
            with suppress(ProcessLookupError):  # Ray's processes would keep the GPU
                os.killpg(program.pid, signal.SIGKILL)
        seconds = time.perf_counter() - began
        if program.returncode:
            print(output, file=sys.stderr)
            raise RuntimeError(f"exit code {program.returncode}: {(output.splitlines() or [''])[-1]}")
        sweep = load_sweep("half", storage)
        table = sweep.table()
        good = (table["state"] == "finished") & table["fid"].notna()
        devices = [sweep.trial(number).reports[-1].facts["device"] for number in table["trial"]]
    elsewhere = 0 if expected is None else sum(name != expected for name in devices)
    return [
        Figure("trials that did not finish", trials - int(good.sum()), 0),
        Figure("trials on another device", elsewhere, 0),
        Figure(f"seconds for {trials} trials of {steps} steps, with the start of Ray and MLflow", seconds),
        Figure("training seconds of the fastest trial", float(table["time/train_s"].min())),
    ]
