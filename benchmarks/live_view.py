"""How long does the live view read for one refresh of a large sweep, and how long with the obvious way?

A database is filled with a sweep of 1,000 trials of 50 reports of 20 metrics, 10⁶ metric points, a few of them still
running. Then, side by side and each in a process of its own:

- first: from nothing to all trials and all learning curves;
- later: the next refresh, after a running trial has reported once more, median of several;
- obvious: every refresh searches all runs and asks for each one's history, as a script over MLflow's client would.

Figures are drawn from what was read and serialised, as the page does, and timed on their own.

    python benchmarks/live_view.py --folder /tmp/live            # keeps the database there for the next time
    python benchmarks/live_view.py --folder /tmp/live --server   # through an MLflow server instead of the database
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from dashboards.live.reader import LiveSweep, newest_sweeps
from dashboards.reading.mlflow_runs import connect
from dashboards.ui import LOOPBACK, QUIET, free_port, mlflow_command, wait_for

SWEEP, TOTAL = "large", 1000
METRICS = (
    *("fid", "kid", "class_consistency", "fid_floor", "fid_2nfe", "loss/total", "loss/consistency", "loss/velocity"),
    *("time/step_ms", "time/train_s", "time/evaluate_s", "memory/peak_mib", "throughput/images_per_s"),
    *("gradient/norm", "schedule/r", "learning_rate", "loss/adversarial", "kid_2nfe", "time/handover_s", "ema/decay"),
)
RUNNING = 8
LATER = 5
"""Refreshes measured after the first one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the database is, or is made and kept")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--reports", type=int, default=50)
    parser.add_argument("--server", action="store_true", help="read through an MLflow server")
    parser.add_argument("--measure", choices=("view", "obvious"), help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print({"view": measure_view, "obvious": measure_obvious}[options.measure](options.uri))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as until_the_end:
        folder = (options.folder or Path(temporary)).absolute()
        database = folder / f"sweep-{options.trials}-{options.reports}.db"
        if not database.exists():
            folder.mkdir(parents=True, exist_ok=True)
            began = time.perf_counter()
            fill(f"sqlite:///{database}", options.trials, options.reports)
            print(f"filled {database} in {time.perf_counter() - began:.0f} s")
        uri = f"sqlite:///{database}"
        if options.server:
            port = free_port()
            server = subprocess.Popen([sys.executable, "-m", *mlflow_command(uri, port)], env=os.environ | QUIET)
            until_the_end.callback(server.wait)
            until_the_end.callback(server.terminate)
            uri = f"http://{LOOPBACK}:{port}"
            wait_for(f"{uri}/health", {"the server": server})
        for way in ("view", "obvious"):
            subprocess.run([sys.executable, __file__, "--measure", way, "--uri", uri], check=True)


def fill(uri: str, trials: int, reports: int) -> None:
    """A sweep as the tracker leaves it, all but the last few of its trials over."""
    client, draw = MlflowClient(uri), random.Random(0)
    folder = Path(uri.removeprefix("sqlite:///")).parent
    experiment = client.create_experiment("soflow", artifact_location=(folder / "artifacts").as_uri())
    began = int(time.time() * 1000) - trials * reports * 1000
    params = {"training.total_steps": TOTAL, "training.report_every": TOTAL // reports, "max_concurrent": RUNNING}
    parent = client.create_run(
        experiment, began, {"soflow.kind": "sweep", "sweep": SWEEP, "num_trials": str(trials + 50)}, SWEEP
    )
    client.log_batch(parent.info.run_id, params=[Param(name, str(value)) for name, value in params.items()])
    for number in range(trials):
        state = draw.choices(["finished", "stopped", "failed"], [5, 4, 1])[0] if number < trials - RUNNING else ""
        made = reports if state == "finished" else draw.randint(1, reports - 2)
        add_trial(client, experiment, parent.info.run_id, number, state, made, reports, began, draw)


def add_trial(client, experiment, parent, number, state, made, reports, began, draw) -> None:
    """One trial; `made` of its reports have their own values, further points only fill the database."""
    at = began + number * reports * 1000
    facts = {f"fact.{i}": "text that says how a number was made" for i in range(25)}
    tags = {"mlflow.parentRunId": parent, "soflow.kind": "trial", "sweep": SWEEP, "optuna_number": str(number)}
    tags |= (
        facts | ({"state": state} if state else {}) | ({"failure": "the loss became NaN"} if state == "failed" else {})
    )
    run = client.create_run(experiment, at, tags, f"{SWEEP}-{number:04d}").info.run_id
    point = {"objective.r_end": draw.random(), "objective.r_init": draw.random(), "training.total_steps": TOTAL}
    params = point | {f"section.option_{i}": i for i in range(50)}
    client.log_batch(run, params=[Param(name, str(value)) for name, value in params.items()])
    quality = draw.lognormvariate(0, 1)
    rows = [
        Metric(name, quality * 100 / (report + 1) + draw.random(), at + report * 1000, (report + 1) * TOTAL // reports)
        for report in range(made)
        for name in METRICS
    ]
    extra = (reports - made) * len(METRICS)  # so that the number of points does not depend on the states
    rows += [Metric("filling", draw.random(), at + i, i) for i in range(extra)]
    for start in range(0, len(rows), 900):
        client.log_batch(run, metrics=rows[start : start + 900])
    if state:
        client.set_terminated(run, "FAILED" if state == "failed" else "FINISHED", at + made * 1000)


def measure_view(uri: str) -> str:
    """The live view's way, with the figures that the page draws at every refresh."""
    from dashboards.live.charts import learning_curves, pareto
    from dashboards.live.findings import current_best, left_s, table

    client = connect(uri)
    live = LiveSweep(client, sweep_of(client).info.run_id, fresh_s=0)
    waits: list[float] = []
    while not live.snapshot.complete:
        waits.append(seconds_of(lambda: live.refresh(("fid",))))
    later = []
    for _ in range(LATER):
        report_once_more(client, live)
        later.append(seconds_of(lambda: live.refresh(("fid",))))
    shown = live.snapshot
    figures = [learning_curves(shown, "fid", current_best(shown)), pareto(shown, "fid", "time/train_s")]
    drawing = seconds_of(lambda: [learning_curves(shown, "fid", None), pareto(shown, "fid", "time/train_s")])
    words = seconds_of(lambda: (left_s(shown), table(shown)))
    size = sum(len(figure.to_json()) for figure in figures)
    return (
        f"live view: first reading {sum(waits):.1f} s in {len(waits)} refreshes, the longest {max(waits):.2f} s; later "
        f"{statistics.median(later):.3f} s ({min(later):.3f} to {max(later):.3f}); figures {drawing:.2f} s and "
        f"{size / 1e6:.2f} MB, table and time left {words:.2f} s; {len(shown.trials)} trials, "
        f"{sum(len(curve.steps) for curve in shown.curves['fid'].values())} points read; {peak_mib()}"
    )


def measure_obvious(uri: str) -> str:
    """Every refresh reads everything."""
    client = connect(uri)
    sweep = sweep_of(client)

    def read() -> None:
        condition, token, runs = f"tags.mlflow.parentRunId = '{sweep.info.run_id}'", None, []
        while True:
            page = client.search_runs([sweep.info.experiment_id], condition, max_results=1000, page_token=token)
            runs += page
            if not (token := page.token):
                break
        for run in runs:
            client.get_metric_history(run.info.run_id, "fid")

    took = [seconds_of(read) for _ in range(2)]
    return f"obvious: first {took[0]:.1f} s, later {took[1]:.1f} s; {peak_mib()}"


def sweep_of(client: MlflowClient) -> Run:
    return next(run for run in newest_sweeps(client) if run.info.run_name == SWEEP)


def report_once_more(client: MlflowClient, live: LiveSweep) -> None:
    """A running trial reports, as the tracker delivers it."""
    trial = next(trial for trial in live.snapshot.trials if trial.state == "running")
    step = live.snapshot.curve(trial, "fid").steps[-1] + 1
    now = int(time.time() * 1000)
    client.log_batch(trial.run_id, metrics=[Metric(name, 1 / step, now, step) for name in METRICS])


def seconds_of(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def peak_mib() -> str:
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"


if __name__ == "__main__":
    main()
