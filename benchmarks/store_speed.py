"""Does a slow object store slow training down? Trains the same run on a disk and in a store, report by report in turn.

The store is an S3-compatible server that answers every request after 300 ms. Prints the ratios of training steps, and
of whole reports with evaluation and checkpoint, store over disk: medians with intervals.

    PYTHONPATH=. python benchmarks/store_speed.py --rounds 15
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from orchestration.store.location import local_folder
from orchestration.workers.messages import Request
from orchestration.workers.training import TrainingWorker
from soflow.config import RunConfig, parse
from soflow.statistics import median_coverage, median_interval

SERVER = """
import sys, time
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

application = DomainDispatcherApplication(create_backend_app)

def slow(environment, start_response):
    time.sleep(float(sys.argv[2]))
    return application(environment, start_response)

run_simple("127.0.0.1", int(sys.argv[1]), slow, threaded=True)
"""


def run_config(steps: int, rounds: int) -> RunConfig:
    training = {"total_steps": steps * (rounds + 1), "report_every": steps, "batch_size": 32}
    evaluation = {"num_samples": 500}
    return parse({"network": {"name": "DiT-XS/2"}, "training": training, "evaluation": evaluation})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--delay", type=float, default=0.3, help="seconds before each answer")
    parser.add_argument("--port", type=int, default=5577)
    options = parser.parse_args()
    torch.set_num_threads(1)
    url = f"http://127.0.0.1:{options.port}"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(options.port), str(options.delay)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ["AWS_ENDPOINT_URL"] = url
        _create_bucket(url)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SOFLOW_CACHE"] = f"{folder}/cache"
            compare(Path(folder), options)
    finally:
        server.kill()


def _create_bucket(url: str) -> None:
    import urllib.request

    for _ in range(100):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"), timeout=10).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server does not start")


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Train both runs in turn, one report at a time."""
    config, device = run_config(options.steps, options.rounds), torch.device("cpu")
    sides = {"disk": folder / "run", "store": local_folder("s3://bucket/exp") / "run"}
    workers = {name: TrainingWorker(str(folder / "reference"), device, 0, 1) for name in sides}
    for path in sides.values():
        path.mkdir(parents=True)
    steps_ms = {name: list[float]() for name in sides}
    reports_s = {name: list[float]() for name in sides}
    for number in range(options.rounds + 1):  # the first is not counted
        for name, path in sides.items():
            began = time.perf_counter()
            answer = workers[name].serve(Request(config, path, number * options.steps))
            elapsed = time.perf_counter() - began
            if number and not answer.reported.finished:  # the last one waits for the store
                steps_ms[name].append(answer.reported.metrics["time/step_ms"])
                reports_s[name].append(elapsed)
            if answer.reported.finished:
                print(f"{name}: the last report took {elapsed:.1f} s")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rounds = len(steps_ms["disk"])
    for title, values, unit in (("step", steps_ms, "ms"), ("report", reports_s, "s")):
        ratios = [a / b for a, b in zip(values["store"], values["disk"], strict=True)]
        low, high = median_interval(ratios)
        ratio, absolute = statistics.median(ratios), statistics.median(values["disk"])
        interval = f"({low:.3f}-{high:.3f}, {median_coverage(rounds):.1%})"
        print(f"{title}: store / disk {ratio:.3f} {interval}; disk: {absolute:.3g} {unit}")
    print(f"{threading.active_count()} threads")


if __name__ == "__main__":
    main()
