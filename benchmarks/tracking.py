"""What the tracker costs: CPU time of recording and delivering, and how opening its journal grows with the trials.

Part 1 records a sweep of 100 trials that report every second, each report 15 metrics and its facts, every tenth with a
grid of samples, as a sweep's monitor does. CPU seconds are those of the recording and the delivering thread (their
thread clocks), per second of wall-clock; a server's own work is a process of its own and does not count. Beside it the
floor: the same rows in bare MLflow requests of 900 metrics.

Part 2 opens the journal of a sweep of many trials, as a resume does, and reads the memory that this takes.

$ python benchmarks/tracking.py
$ python benchmarks/tracking.py --server --seconds 60
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image

from orchestration.tracking.environment import environment_tags
from orchestration.tracking.tracker import Tracker
from orchestration.tracking.uri import TrackingError, check_tracking

NAMES = (
    *("fid", "kid", "class_consistency", "fid_floor", "loss/total", "loss/consistency", "loss/velocity"),
    *("time/step_ms", "time/train_s", "time/evaluate_s", "memory/peak_mib", "throughput/images_per_s"),
    *("gradient/norm", "schedule/r", "learning_rate"),
)
"""The metrics of a report."""
FACTS = {f"fact.{number}": "text that says how a number was made" for number in range(8)}
GRID_EVERY = 10
FLOOR_METRICS = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="store_true", help="deliver to an MLflow server instead of a database")
    parser.add_argument("--runs", type=int, default=100, help="trials that report every second")
    parser.add_argument("--seconds", type=int, default=40, help="for how long")
    parser.add_argument("--trials", type=int, default=10_000, help="trials in the journal of part 2")
    parser.add_argument("--reports", type=int, default=10, help="reports of each of them")
    options = parser.parse_args()
    versions = environment_tags()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, MLflow {versions['version.mlflow']}"
    )
    with tempfile.TemporaryDirectory() as folder:
        server, uri = _server(Path(folder)) if options.server else (None, f"sqlite:///{folder}/mlflow.db")
        try:
            _cost_of_reports(uri, Path(folder), options.runs, options.seconds)
        finally:
            if server:
                server.terminate()
                server.wait()
        if not options.server:
            _cost_of_opening(Path(folder), options.trials, options.reports)


def _server(folder: Path) -> tuple[subprocess.Popen, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process, uri = subprocess.Popen(command, cwd=folder, **quiet), f"http://127.0.0.1:{port}"
    while True:
        try:
            check_tracking(uri)
            return process, uri
        except TrackingError:
            time.sleep(0.5)


def _report(step: int) -> dict[str, float]:
    return {name: random.random() + step for name in NAMES}


def _cost_of_reports(uri: str, folder: Path, runs: int, seconds: int) -> None:
    grid = folder / "grid.png"
    Image.effect_noise((88, 88), 60).save(grid)  # the grid of 100 digits
    tracker = Tracker(uri, "benchmark", folder / "spool")
    for run in range(runs):
        tracker.start_run(str(run), str(run), {f"param.{number}": number for number in range(60)}, FACTS)
    assert tracker.flush(300)
    delivering = _ThreadClock("mlflow-writer")
    events, recorded_s, began, delivered_s = 0, 0.0, time.perf_counter(), delivering()
    for step in range(1, seconds + 1):
        for run in range(runs):
            before = time.thread_time()
            tracker.log_metrics(str(run), _report(step), step)
            events += 1
            if (step + run) % GRID_EVERY == 0:
                tracker.log_image(str(run), grid, "samples", step)
                events += 1
            recorded_s += time.thread_time() - before
            time.sleep(max(0, began + step - 1 + (run + 1) / runs - time.perf_counter()))
    wall_s, spent_s, backlog = time.perf_counter() - began, delivering() - delivered_s, len(tracker._spool)
    print(f"{runs} trials, a report of {len(NAMES)} metrics a second each, {wall_s:.0f} s, to {uri.split(':')[0]}:")
    print(f"  recording  {recorded_s / wall_s:6.2%} of a core")
    print(
        f"  delivering {spent_s / wall_s:6.2%} of a core, {(events - backlog) / wall_s:.0f} of {events / wall_s:.0f} "
        f"events a second delivered, {backlog} waiting at the end"
    )
    tracker.flush(600)
    total_s = delivering() - delivered_s
    print(f"  with the rest of them {total_s:.2f} s for {events} events, {total_s / seconds:.2%} of a core")
    tracker.close(60)
    _floor(uri, runs * len(NAMES))


def _floor(uri: str, metrics_per_s: int) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(uri)
    run_id = client.create_run(client.get_experiment_by_name("benchmark").experiment_id).info.run_id
    spent = []
    for request in range(7):
        rows = [
            Metric(name, random.random(), 1000 + step, step)
            for step in range(request * FLOOR_METRICS // len(NAMES), (request + 1) * FLOOR_METRICS // len(NAMES))
            for name in NAMES
        ]
        before = time.thread_time()
        client.log_batch(run_id, metrics=rows, synchronous=True)
        spent.append((time.thread_time() - before) / len(rows))
    row_s = sorted(spent)[len(spent) // 2]
    print(
        f"  floor: {1e6 * row_s:.0f} µs a metric in bare requests of {FLOOR_METRICS}, "
        f"{row_s * metrics_per_s:.2%} of a core for {metrics_per_s} a second"
    )


class _ThreadClock:
    """CPU seconds of a thread of this process, by its name."""

    def __init__(self, name: str):
        thread = next(thread for thread in threading.enumerate() if thread.name == name)
        self._clock = time.pthread_getcpuclockid(thread.ident)

    def __call__(self) -> float:
        return time.clock_gettime(self._clock)


def _cost_of_opening(folder: Path, trials: int, reports: int) -> None:
    """Write the journal as an outage leaves it: nothing delivered, nothing lost."""
    nobody = "http://127.0.0.1:9"
    tracker = Tracker(nobody, "benchmark", folder / "long")
    began = time.perf_counter()
    for trial in range(trials):
        key = f"sweep/{trial:05d}"
        tracker.start_run(key, key, {f"param.{number}": number for number in range(60)}, FACTS, parent="sweep")
        for step in range(1, reports + 1):
            tracker.log_metrics(key, _report(step), step)
            tracker.log_image(key, folder / "grid.png", "samples", step)
        tracker.end_run(key, "FINISHED")
    size = (folder / "long" / "journal.jsonl").stat().st_size
    print(
        f"{trials} trials of {reports} reports: {len(tracker._spool)} events, {size / 2**20:.0f} MiB of journal, "
        f"recorded in {time.perf_counter() - began:.1f} s"
    )
    for case in ("as a killed process left it", "without its index"):
        _open_elsewhere(folder / "long", case, nobody)
        (folder / "long" / "index.json").unlink(missing_ok=True)
    tracker.close(0)


def _open_elsewhere(spool: Path, case: str, uri: str) -> None:
    """Open a copy of the journal in a fresh process, whose peak memory is then that of opening it."""
    with tempfile.TemporaryDirectory(dir=spool.parent) as copy:
        shutil.copytree(spool, copy, dirs_exist_ok=True)
        output = subprocess.run([sys.executable, "-c", OPEN, uri, copy], capture_output=True, text=True, check=True)
    print(f"  opened {case}: {output.stdout.strip()}")


OPEN = """
import re, sys, time
from pathlib import Path
from orchestration.tracking.tracker import Tracker
peak_mib = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak_mib()
began = time.perf_counter()
tracker = Tracker(sys.argv[1], "benchmark", Path(sys.argv[2]))
took = time.perf_counter() - began
events = len(tracker._spool)
print(f"{took:.2f} s, {events} events waiting, peak memory {peak_mib():.0f} MiB, {before:.0f} of them before")
"""


if __name__ == "__main__":
    main()
