"""How long does one refresh of the live view take for a large sweep, compared with the naive way?

Fills a database with a sweep of 1,000 trials of 50 reports of 20 metrics, 10⁶ metric points, a few of them still
running. Then measures, each in a separate process:

- first: from an empty view to all trials and all learning curves;
- later: the next refresh after a running trial has reported again, median of several;
- naive: every refresh searches all runs and reads each one's history, like a script over MLflow's client.

Figures are drawn and serialized as on the page, and timed separately.

    python benchmarks/live_view.py --folder /tmp/live            # keeps the database for the next time
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
"""Number of refreshes measured after the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder of the database, which is created if missing, and kept")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--reports", type=int, default=50)
    parser.add_argument("--server", action="store_true", help="read through an MLflow server")
    parser.add_argument("--measure", choices=("view", "naive"), help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print({"view": measure_view, "naive": measure_naive}[options.measure](options.uri))
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
        for method in ("view", "naive"):
            subprocess.run([sys.executable, __file__, "--measure", method, "--uri", uri], check=True)


def fill(uri: str, trials: int, reports: int) -> None:
    """Write a sweep as the tracker does, in which only the last few trials are running."""
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
        count = reports if state == "finished" else draw.randint(1, reports - 2)
        add_trial(client, experiment, parent.info.run_id, number, state, count, reports, began, draw)


def add_trial(client, experiment, parent, number, state, count, reports, began, draw) -> None:
    """Write a trial with `count` reports; points of another metric fill it up to the size of `reports`."""
    at = began + number * reports * 1000
    facts = {f"fact.{i}": "description of how a number was computed" for i in range(25)}
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
        for report in range(count)
        for name in METRICS
    ]
    num_fill = (reports - count) * len(METRICS)  # makes the number of points independent of the states
    rows += [Metric("fill", draw.random(), at + i, i) for i in range(num_fill)]
    for start in range(0, len(rows), 900):
        client.log_batch(run, metrics=rows[start : start + 900])
    if state:
        client.set_terminated(run, "FAILED" if state == "failed" else "FINISHED", at + count * 1000)


def measure_view(uri: str) -> str:
    """Measure the refreshes of the live view, with the figures that its page draws each time."""
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
    snapshot = live.snapshot
    figures = [learning_curves(snapshot, "fid", current_best(snapshot)), pareto(snapshot, "fid", "time/train_s")]
    figures_s = seconds_of(lambda: [learning_curves(snapshot, "fid", None), pareto(snapshot, "fid", "time/train_s")])
    table_s = seconds_of(lambda: (left_s(snapshot), table(snapshot)))
    size = sum(len(figure.to_json()) for figure in figures)
    return (
        f"live view: first reading {sum(waits):.1f} s in {len(waits)} refreshes, the longest {max(waits):.2f} s; later "
        f"{statistics.median(later):.3f} s ({min(later):.3f} to {max(later):.3f}); figures {figures_s:.2f} s and "
        f"{size / 1e6:.2f} MB, table and time left {table_s:.2f} s; {len(snapshot.trials)} trials, "
        f"{sum(len(curve.steps) for curve in snapshot.curves['fid'].values())} points read; {peak_mib()}"
    )


def measure_naive(uri: str) -> str:
    """Measure refreshes that read everything."""
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

    first, later = (seconds_of(read) for _ in range(2))
    return f"naive: first {first:.1f} s, later {later:.1f} s; {peak_mib()}"


def sweep_of(client: MlflowClient) -> Run:
    return next(run for run in newest_sweeps(client) if run.info.run_name == SWEEP)


def report_once_more(client: MlflowClient, live: LiveSweep) -> None:
    """Add a report to a running trial, as the tracker delivers it."""
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
