"""The project's programs as users start them, with their storage in one temporary folder."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from tests.database import new_database

ROOT = Path(__file__).parents[2]
# Small enough for a test, large enough for three reports: 12 steps of a tiny batch, FID of few samples.
SMALL = [
    *("--training.total-steps", "12", "--training.report-every", "4", "--training.batch-size", "32"),
    *("--evaluation.num-samples", "64"),
]


PRELOADED = [
    *("torch", "torchvision", "timm.layers", "torch_fidelity", "scipy.stats", "pandas", "plotly.graph_objects"),
    *("mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "optuna", "rich.live"),
    *("ray.tune", "ray.train.torch", "ray.data"),
]
"""Packages that programs import. A server process imports them once; programs are forked from it (10 s less each)."""


class Program:
    """A program of experiments/ in a terminal session of its own, forked from a process with its imports.

    Used like subprocess.Popen with stdout=PIPE, stderr=STDOUT and text=True.
    """

    def __init__(self, name: str, arguments: list[str], folder: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        pipe = folder / f".output-{uuid.uuid4().hex}"
        os.mkfifo(pipe)
        environment = os.environ | {"COLUMNS": "200"}
        self._process = context.Process(target=_main, args=(name, arguments, folder, pipe, environment))
        self._process.start()
        self.pid = self._process.pid
        self.stdout = pipe.open()
        pipe.unlink()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"still running after {timeout} s")
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Read the rest of the output and wait for the end."""
        ended = threading.Timer(timeout, os.killpg, (self.pid, signal.SIGKILL))
        ended.start()
        output = self.stdout.read()
        self.wait(timeout)
        ended.cancel()
        return output, None


def _main(name: str, arguments: list[str], folder: Path, pipe: Path, environment: dict[str, str]) -> None:
    """Become the program: its terminal session, folder, environment, arguments and output."""
    os.setsid()
    output = os.open(pipe, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(ROOT / "experiments" / name), *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


class Session:
    """Runs programs with their storage in one folder.

    Args:
        cluster: address of a running Ray cluster for all programs; without one each starts Ray itself.
    """

    def __init__(self, storage: Path, cluster: str | None = None):
        self.storage, self.cluster = storage, cluster
        self.tracking_uri = new_database(storage)
        self._terminals: set[int] = set()

    def launch(self, command: list[str]) -> subprocess.Popen:
        """Start a command in a terminal session of its own."""
        process = subprocess.Popen(
            command,
            cwd=self.storage,
            env=os.environ | {"COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._terminals.add(process.pid)
        return process

    def processes(self, title: str = "") -> list[int]:
        """Living processes of this session's terminals whose command contains `title`."""
        living = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = os.getsid(int(folder.name)) in self._terminals
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended in the meantime
                continue
            if ours and command and title in command:  # a zombie has no command
                living.append(int(folder.name))
        return living

    def kill(self, title: str) -> None:
        """SIGKILL the one process with this title."""
        deadline = time.monotonic() + 5
        while not (living := self.processes(title)) and time.monotonic() < deadline:
            time.sleep(0.01)  # a title cannot be read while Ray is changing it
        assert len(living) == 1, f"{title}: {living}"
        os.kill(living[0], signal.SIGKILL)

    def assert_nothing_left(self, within_s: float = 40) -> None:
        """Check that every process that was started ends soon; Ray's agents look every few seconds for their raylet."""
        deadline = time.monotonic() + within_s
        while (living := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not living, f"processes were left behind: {living}"

    def arguments(self, program: str, *arguments: str) -> list[str]:
        """The arguments with this session's storage and cluster."""
        added = []
        if program not in ("sample.py", "encode_latents.py") and "--storage" not in arguments:
            added += ["--storage", str(self.storage)]
        if self.cluster and program not in ("sample.py",) and "--address" not in arguments:
            added += ["--address", self.cluster]
        return [*arguments, *added]

    def start(self, program: str, *arguments: str) -> Program:
        """Start a program of experiments/."""
        started = Program(program, self.arguments(program, *arguments), self.storage)
        self._terminals.add(started.pid)
        return started

    def run(self, program: str, *arguments: str, timeout_s: float = 400) -> tuple[int, str]:
        """Run a program to its end; its exit code and output."""
        process = self.start(program, *arguments)
        output, _ = process.communicate(timeout_s)
        return process.returncode, output

    def succeed(self, program: str, *arguments: str) -> str:
        """Run a program to its end, which must be exit code 0; its output."""
        code, output = self.run(program, *arguments)
        assert code == 0, output
        return output

    def fail(self, program: str, *arguments: str) -> str:
        """Run a program with bad input; the one line that it prints with exit code 2."""
        code, output = self.run(program, *arguments)
        assert code == 2, output
        assert output.count("\n") == 1, output
        return output

    def runs(self) -> dict[str, object]:
        """MLflow's runs by name."""
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking_uri)
        experiment = client.get_experiment_by_name("soflow")
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        assert len({run.info.run_name for run in runs}) == len(runs), "a run was recorded twice"
        return {run.info.run_name: run for run in runs}

    def history(self, name: str, metric: str) -> list[tuple[int, float]]:
        from mlflow import MlflowClient

        run = self.runs()[name]
        points = MlflowClient(self.tracking_uri).get_metric_history(run.info.run_id, metric)
        return [(point.step, point.value) for point in points]

    def study_states(self, sweep: str) -> list[str]:
        import optuna

        from orchestration.sweep.study_storage import open_journal

        journal = open_journal(self.storage / sweep / "study.journal")
        study = optuna.load_study(study_name=sweep, storage=journal)
        return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def wait_for_line(process: subprocess.Popen | Program, text: str) -> list[str]:
    """Read a program's output up to the first line that contains `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"ended without printing {text!r}:\n{''.join(lines)}")
