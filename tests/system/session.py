"""Real sweeps and runs, started as users start them, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Small enough for a test, large enough for three reports: 12 steps of a tiny batch, FID of few samples.
SMALL = [
    *("--training.total-steps", "12", "--training.report-every", "4", "--training.batch-size", "32"),
    *("--evaluation.num-samples", "64"),
]


class Session:
    """Runs the project's programs with their storage in one temporary folder."""

    def __init__(self, storage: Path):
        self.storage = storage
        self._terminals: set[int] = set()

    def launch(self, command: list[str]) -> subprocess.Popen:
        """Start a command as a terminal of its own would; all that it starts belongs to that terminal."""
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
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = os.getsid(int(folder.name)) in self._terminals
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if ours and command and title in command:  # an ended process that nobody waited for has no command
                found.append(int(folder.name))
        return found

    def kill(self, title: str) -> None:
        """SIGKILL the one process with this title."""
        deadline = time.monotonic() + 5
        while not (found := self.processes(title)) and time.monotonic() < deadline:
            time.sleep(0.01)  # a title cannot be read while Ray is changing it
        assert len(found) == 1, f"{title}: {found}"
        os.kill(found[0], signal.SIGKILL)

    def assert_nothing_left(self, within_s: float = 20) -> None:
        """Every process that was started has ended, or ends soon."""
        deadline = time.monotonic() + within_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not left, f"processes were left behind: {left}"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.storage / 'mlflow.db'}"

    def start(self, program: str, *arguments: str) -> subprocess.Popen:
        """A program of experiments/."""
        command = [sys.executable, str(ROOT / "experiments" / program), *arguments]
        if program != "sample.py" and "--storage" not in arguments:
            command += ["--storage", str(self.storage)]
        return self.launch(command)

    def run(self, program: str, *arguments: str, timeout_s: float = 240) -> tuple[int, str]:
        """Exit code and all that it printed."""
        process = self.start(program, *arguments)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output

    def runs(self) -> dict[str, object]:
        """MLflow's runs by name."""
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking_uri)
        experiment = client.get_experiment_by_name("soflow")
        found = client.search_runs([experiment.experiment_id], max_results=1000)
        assert len({run.info.run_name for run in found}) == len(found), "a run was recorded twice"
        return {run.info.run_name: run for run in found}

    def history(self, name: str, metric: str) -> list[tuple[int, float]]:
        from mlflow import MlflowClient

        run = self.runs()[name]
        return [
            (point.step, point.value)
            for point in MlflowClient(self.tracking_uri).get_metric_history(run.info.run_id, metric)
        ]

    def study_states(self, sweep: str) -> list[str]:
        import optuna

        from orchestration.sweep.study import open_journal

        study = optuna.load_study(study_name="sweep", storage=open_journal(self.storage / sweep / "study.journal"))
        return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def wait_for_line(process: subprocess.Popen, text: str) -> list[str]:
    """Read a program's output up to the first line that contains `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"ended without printing {text!r}:\n{''.join(lines)}")
