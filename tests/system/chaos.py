"""Inject every fault that a sweep must survive at random moments, and compare its result with an undisturbed sweep.

$ PYTHONPATH=. python tests/system/chaos.py 0 1 2     each seed's sweep against one that nothing happened to
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from cluster import Cluster

from tests.database import new_database

ROOT = Path(__file__).parents[2]
NUM_TRIALS, FEW_TRIALS, STEPS, REPORT_EVERY = 12, 6, 40, 8
"""Trials of a sweep that has time for all faults, and of one for a single fault."""
LAST_GRIDS = 3  # at the end a trial also draws its samples at 2 and 4 NFE, and real images
SWEEP = [
    *("--max-concurrent", "1", "--early-stopping.kind", "none", "--name", "sweep"),
    *("--training.total-steps", str(STEPS), "--training.report-every", str(REPORT_EVERY)),
    *("--training.batch-size", "64", "--evaluation.num-samples", "64"),
]
FAULTS = ("worker", "trainable", "raylet", "driver", "server", "disk", "answer")
OUTAGE_S, FULL_S, PATIENCE_S = 30, 5, 900
SMALL_DISK = "512m"
NO_ANSWER_S = 20
"""Seconds after which a worker that does not answer is replaced, instead of five minutes."""
SERVER = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""An MLflow server without the eight processes that it starts for jobs of language models."""


@dataclass
class Server:
    """An MLflow server that can be taken away and brought back."""

    folder: Path
    port: int = 0
    process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        database, artifacts = new_database(self.folder), str(self.folder / "artifacts")
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", database, "--artifacts-destination", artifacts]
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=SERVER, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@dataclass
class Chaos:
    """One sweep on a cluster of three nodes with a tracking server, and what is done to it."""

    folder: Path
    cluster: Cluster
    seed: int
    outage_s: float = OUTAGE_S
    """How long the tracking server is away."""
    num_trials: int = NUM_TRIALS
    server: Server = field(init=False)
    driver: subprocess.Popen | None = None
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.server, self.random = Server(self.folder), random.Random(self.seed)
        self._back = threading.Thread()
        self._back.start()

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    @property
    def sweep(self) -> Path:
        return self.folder / "sweep"

    def run(self, faults: tuple[str, ...]) -> None:
        """The sweep from its start to its end, with these faults in an order and at moments that the seed decides."""
        order = self.random.sample(faults, len(faults))
        if "disk" in order:  # its small disk is put in place while no driver runs
            order.remove("disk")
            order.insert(self.random.randint(order.index("driver") + 1, len(order)), "disk")
        self.server.start()
        try:
            self._launch(
                *SWEEP,
                "--num-trials",
                str(self.num_trials),
                "--tracking-uri",
                self.server.uri,
                "--address",
                self.cluster.address,
            )
            for fault in order:
                self._wait_for_reports(self.random.randint(1, 5))
                time.sleep(self.random.uniform(0, 1.5))
                self._tell(fault)
                getattr(self, f"_lose_{fault}")()
            self._wait(lambda: self.driver.poll() is not None, "the sweep's end")
            assert self.driver.returncode == 0, self.output
        finally:
            self._kill_driver()
            self._back.join()
            self.server.stop()
            self._unmount()

    def _launch(self, *flags: str) -> None:
        command = [sys.executable, str(ROOT / "experiments" / "sweep_schedule.py"), *flags]
        with open(self.folder / "output", "a") as out:
            self.driver = subprocess.Popen(
                [*command, "--storage", str(self.folder)],
                cwd=self.folder,
                env=os.environ | self.cluster.env | {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(NO_ANSWER_S)},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _wait_for_reports(self, count: int) -> None:
        wanted = self.output.count(", step ") + count
        self._wait(lambda: self.output.count(", step ") >= wanted, f"{count} reports")

    def _wait(self, condition, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {PATIENCE_S} s\n{self.log}\n{self.output}"
            assert what == "the sweep's end" or self.driver.poll() is None, f"it ended\n{self.log}\n{self.output}"
            time.sleep(0.1)

    def _tell(self, what: str) -> None:
        self.log.append(f"{time.strftime('%H:%M:%S')} {what}, after {self.output.count(', step ')} reports")

    def _lose_worker(self) -> None:
        self.cluster.kill("ray::RayTrainWorker", self.random.choice)

    def _lose_trainable(self) -> None:
        self.cluster.kill("ray::ResourceTrainable", self.random.choice)

    def _lose_answer(self) -> None:
        """A worker hangs: for a moment, or until it is replaced."""
        stopped = self.cluster.kill("ray::RayTrainWorker", self.random.choice, signal.SIGSTOP)
        if self.random.random() < 0.5:
            time.sleep(5)
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
            self._tell("lets the worker go on")

    def _lose_raylet(self) -> None:
        """A node that is not the head, by preference one that has a part of the sweep; a new one takes its place."""
        nodes = [index for index, node in enumerate(self.cluster.nodes) if index and node.process.poll() is None]
        busy = [index for index, _ in self.cluster.processes("ray::RayTrainWorker") if index in nodes]
        self.cluster.kill_raylet(self.random.choice(busy or nodes))
        self.cluster.add_node(2)

    def _lose_driver(self) -> None:
        """By SIGKILL, or by SIGTERM as batch systems send it."""
        if self.random.random() < 0.5:
            self._tell("ends the driver with SIGTERM")
            self.driver.terminate()
            assert self.driver.wait(60) == 128 + signal.SIGTERM, self.output
            assert "resume with: " in self.output
        else:
            self._kill_driver()
        self._back.join()  # a sweep neither starts nor resumes while its server is down
        if self._mount():
            self._tell("the sweep's disk is a small one")
        self._launch("--resume", "sweep")

    def _kill_driver(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()

    def _lose_server(self) -> None:
        """The rest goes on meanwhile, and so do the other faults. It comes back with its records, or empty."""
        self.server.stop()
        if self.random.random() < 0.5:
            self._tell("empties the server")
            (self.folder / "mlflow.db").unlink()
        self._back = threading.Timer(self.outage_s, self.server.start)
        self._back.start()

    def _lose_disk(self) -> None:
        """The disk of trials, study and records is full for a while."""
        if not os.path.ismount(self.sweep):
            self._tell("the disk could not be filled: mounting is not allowed here")
            return
        ballast = self.sweep / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            for size in (2**20, 4096):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
        assert os.statvfs(ballast).f_bavail == 0
        time.sleep(FULL_S)
        ballast.unlink()

    def _mount(self) -> bool:
        """Put the sweep's folder onto a small disk of its own, where this may be done."""
        if os.geteuid() != 0 or not (self.sweep / "spool").exists():
            return False
        self.sweep.rename(moved := self.sweep.with_name("moved"))
        self.sweep.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(self.sweep)]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
        subprocess.run(["cp", "-a", f"{moved}/.", str(self.sweep)], check=True)
        return mounted

    def _unmount(self) -> None:
        if os.path.ismount(self.sweep):
            subprocess.run(["cp", "-a", str(self.sweep), str(saved := self.sweep.with_name("saved"))], check=True)
            subprocess.run(["umount", "--lazy", str(self.sweep)], check=True)
            shutil.rmtree(self.sweep)  # a worker that was just lost may have written before the disk was in place
            saved.rename(self.sweep)


def check(chaos: Chaos, undisturbed: Path) -> None:
    """Every trial is accounted for once in Optuna and MLflow, and measured what it would have undisturbed."""
    numbers = ["trial", "state", "step", "fid", "kid", "class_consistency"]
    tables = [pd.read_csv(folder / "sweep" / "trials.csv") for folder in (undisturbed, chaos.folder)]
    expected, found = (table.sort_values("trial")[numbers].reset_index(drop=True) for table in tables)
    assert len(found) == NUM_TRIALS
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    _check_study(chaos.sweep)
    assert histories(chaos.folder) == histories(undisturbed)


def _check_study(sweep: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(sweep / "study.journal")))
    [summary] = optuna.get_all_study_summaries(storage)
    states = [trial.state.name for trial in optuna.load_study(study_name=summary.study_name, storage=storage).trials]
    assert states == ["COMPLETE"] * NUM_TRIALS, states


def histories(folder: Path) -> dict[str, list]:
    """FID by step of every trial in the folder's MLflow database, which holds all records, each once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("soflow").experiment_id], max_results=1000)
    assert sorted(run.info.run_name for run in runs) == ["sweep", *(f"sweep-{n:04d}" for n in range(NUM_TRIALS))]
    steps = list(range(REPORT_EVERY, STEPS + 1, REPORT_EVERY))
    found = {}
    for run in runs:
        assert run.info.status == "FINISHED", run.info.run_name
        if run.info.run_name == "sweep":
            continue
        history = client.get_metric_history(run.info.run_id, "fid")
        assert [point.step for point in history] == steps, (run.info.run_name, history)
        for name in run.data.metrics:
            once = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            assert len(once) == len(set(once)) == len({step for step, _ in once}), (run.info.run_name, name, once)
        images = folder / "artifacts" / run.info.experiment_id / run.info.run_id / "artifacts" / "images"
        assert len(list(images.glob("*.png"))) == len(steps) + LAST_GRIDS, run.info.run_name
        found[run.info.run_name] = [(point.step, point.value) for point in history]
    return found


def run_seed(folder: Path, seed: int, faults: tuple[str, ...] = FAULTS) -> Chaos:
    """A sweep in `folder` on a cluster of its own with these faults."""
    with Cluster((2, 2, 2)) as cluster:
        chaos = Chaos(folder, cluster, seed)
        chaos.run(faults)
    return chaos


def main(seeds: list[int]) -> int:
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"in {folder}", flush=True)
    run_seed(folder / "undisturbed", 0, faults=())
    failed = 0
    for seed in seeds:
        began = time.monotonic()
        chaos = None
        try:
            chaos = run_seed(folder / str(seed), seed)
            check(chaos, folder / "undisturbed")
            outcome = "every trial once, numbers equal"
        except AssertionError as error:
            outcome, failed = f"FAILED: {error}", failed + 1
        print(f"seed {seed}, {time.monotonic() - began:.0f} s: {outcome}", flush=True)
        for line in chaos.log if chaos else ():
            print(f"    {line}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main([int(seed) for seed in sys.argv[1:]]))
