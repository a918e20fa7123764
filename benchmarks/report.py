"""How long does a sweep's report take to build and to open, and how large is its file?

Writes a sweep of many trials with random values, as an MLflow database and an Optuna study. Then runs the report's
command and opens the file in Chromium without network.

    python benchmarks/report.py --trials 1000 --reports 50
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from optuna.trial import TrialState, create_trial
from PIL import Image

from orchestration.storage import STUDY_FILE, SWEEP_FILE
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.study_storage import open_journal
from orchestration.sweep.ticket import trial_config
from soflow.config import flatten, to_dict
from soflow.config_files import to_yaml

EVERY = 200
NAME = "many"
OPENED = 7
"""Number of times the report is opened."""


def write_sweep(folder: Path, trials: int, reports: int) -> str:
    """Write a sweep to folder/mlflow.db; return the database's URI."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client, draws = MlflowClient(uri), random.Random(0)
    experiment = client.create_experiment("soflow", artifact_location=(folder / "artifacts").as_uri())
    config = SweepConfig.model_validate({"name": NAME, "storage": folder, "num_trials": trials})
    (folder / NAME).mkdir()
    (folder / NAME / SWEEP_FILE).write_text(to_yaml(config))
    tags = {"soflow.kind": "sweep", "sweep": NAME, "folder": str(folder / NAME)}
    parent = client.create_run(experiment, None, tags, NAME).info.run_id
    params = flatten(to_dict(config)).items()
    client.log_batch(parent, params=[Param(key, str(value)) for key, value in params if key != "search"])
    client.log_artifact(parent, str(folder / NAME / SWEEP_FILE))
    space, points = search_space.build(config), optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study = optuna.create_study(study_name=NAME, storage=open_journal(folder / NAME / STUDY_FILE))
    for number in range(trials):
        trial = points.ask()
        space(trial)
        ended = draws.choice(("finished", "finished", "stopped", "stopped", "failed"))
        last = reports if ended == "finished" else draws.randint(1, reports)
        level = math.exp(draws.uniform(-1, 2))
        fids = [level * (1 + 30 * math.exp(-8 * step / reports)) * draws.uniform(0.95, 1.05) for step in range(last)]
        state = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}[ended]
        study.add_trial(
            create_trial(
                state=state,
                value=fids[-1] if ended == "finished" else None,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values={(step + 1) * EVERY: fid for step, fid in enumerate(fids)},
            )
        )
        run = trial_config(config.run, space.point(trial.params))
        _write_trial(client, experiment, parent, number, flatten(to_dict(run)), fids, ended)
    client.set_terminated(parent)
    return uri


def _write_trial(
    client, experiment: str, parent: str, number: int, params: dict, fids: list[float], ended: str
) -> None:
    tags = {"soflow.kind": "trial", "sweep": NAME, "mlflow.parentRunId": parent, "optuna_number": str(number)}
    tags |= {"state": ended, "fid_feature_network": "digits-cnn", "fid_num_samples": "1024", "nfe": "1,2"}
    tags |= {"failure": "the loss became infinite or NaN"} if ended == "failed" else {}
    run = client.create_run(experiment, None, tags, f"{NAME}-{number:04d}").info.run_id
    now, rows, metrics = int(time.time() * 1000), [], {}
    for position, fid in enumerate(fids, 1):
        metrics = {"fid": fid, "fid_2nfe": 0.8 * fid, "kid": fid / 30, "class_consistency": 1 / (1 + fid)}
        metrics |= {"time/train_s": position * (8 + number % 7), "time/step_ms": 40.0 + number % 7}
        metrics |= {"memory/peak_mib": 900.0 + number % 40, "fid_floor": 0.0407}
        rows += [Metric(key, value, now, position * EVERY) for key, value in metrics.items()]
    rows += [Metric(f"final/{key}", value, now, len(fids) * EVERY) for key, value in metrics.items()]
    items = [Param(key, str(value)) for key, value in params.items()]
    client.log_batch(run, params=items, tags=[RunTag("device", "cpu")])
    for start in range(0, len(rows), 900):
        client.log_batch(run, metrics=rows[start : start + 900])
    client.set_terminated(run, "FAILED" if ended == "failed" else "FINISHED")


def add_pictures(folder: Path, uri: str, side: int = 346) -> None:
    """Upload grids of color noise, which compress worst, for all reports of the finished trials that a report shows."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("soflow").experiment_id
    finished = client.search_runs(
        [experiment], "tags.state = 'finished'", order_by=["metrics.`final/fid`"], max_results=5000
    )
    for run in {finished[0], finished[len(finished) // 2], finished[-1]} if finished else ():
        for row in client.get_metric_history(run.info.run_id, "fid"):
            path = folder / f"samples+step+{row.step}+timestamp+{row.timestamp}+{row.step:08d}.png"
            Image.merge("RGB", [Image.effect_noise((side, side), 80) for _ in range(3)]).save(path)
            client.log_artifact(run.info.run_id, str(path), "images")
            path.unlink()


def seconds_to_open(path: Path, times: int) -> tuple[list[float], list[float]]:
    """Measure the seconds from each navigation until the visible part is complete, and until all figures are drawn.

    The browser is already running; each time uses a new page and process without a cache.
    """
    from playwright.sync_api import sync_playwright

    opened, drawn = [], []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for _ in range(times):
            context = browser.new_context(offline=True)
            page = context.new_page()
            began = time.perf_counter()
            page.goto(path.as_uri(), wait_until="commit")
            for moment, seconds in (("opened", opened), ("drawn", drawn)):
                page.wait_for_selector(f"html[data-{moment}]", state="attached", timeout=120_000)
                seconds.append(time.perf_counter() - began)
            context.close()
        browser.close()
    return opened, drawn


def spread(seconds: Sequence[float]) -> str:
    """Format median, minimum and maximum."""
    return f"median {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--reports", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="folder for the database and the report, which are kept")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep.absolute() if options.keep else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = folder / "report.html"
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        if not (folder / "mlflow.db").exists():
            write_sweep(folder, options.trials, options.reports)
            add_pictures(folder, uri)
        command = [sys.executable, "-m", "dashboards.report", NAME, "--tracking-uri", uri, "--output", str(report)]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        print(f"build: {time.perf_counter() - began:.1f} s, including imports")
        print(f"size:  {report.stat().st_size / 1e6:.2f} MB")
        opened, drawn = seconds_to_open(report, OPENED)
        print(f"open:  {spread(opened)}; all figures drawn, also those below the screen: {spread(drawn)}")


if __name__ == "__main__":
    main()
