"""How is the time of a sweep's slots spent? Runs the default digits sweep and evaluates its reports.

Slot time is the number of slots times the seconds from the first trial's first step to the last trial's end, without
the start of Ray and of the workers. Training and evaluation times are taken from the trials' reports; "no trial left"
is the idle time of slots at the end. The remainder is sample grids, checkpoints, and Ray Tune's round trips after each
report and between trials.

    python benchmarks/slot_time.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

from orchestration.storage import trial_folder
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.run import run_sweep
from orchestration.sweep.study_storage import load_study


def shares(config: SweepConfig, folder: Path) -> dict[str, float]:
    """Compute the seconds of all slots by activity, and their sum as `slots`."""
    seconds = dict.fromkeys(("training", "evaluation", "no trial left"), 0.0)
    begins, ends = [], []
    for trial in load_study(config, folder).get_trials(deepcopy=False):
        files = sorted((trial_folder(folder, trial.number) / "reports").glob("step-*.json"))
        reports = [json.loads(file.read_text())["metrics"] for file in files]
        first = reports[0]
        seconds["training"] += reports[-1]["time/train_s"]
        seconds["evaluation"] += sum(report["time/evaluate_s"] for report in reports)
        begins.append(files[0].stat().st_mtime - first["time/train_s"] - first["time/evaluate_s"])
        ends.append(trial.datetime_complete.timestamp())
    last = sorted(ends)[-config.max_concurrent :]
    seconds["no trial left"] = sum(last[-1] - end for end in last)
    seconds["slots"] = config.max_concurrent * (max(ends) - min(begins))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = SweepConfig.model_validate({"name": "sweep", "storage": folder, "num_trials": options.trials})
        run_sweep(config, lambda folder, attach: None)
        seconds = shares(config, Path(folder) / "sweep")
    total = seconds.pop("slots")
    seconds["other"] = total - sum(seconds.values())
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{config.max_concurrent} slots, {options.trials} trials, {total / config.max_concurrent:.0f} s\n")
    print("| activity | share |\n|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value / total:.1%} |")


if __name__ == "__main__":
    main()
