"""Which claims of the papers and of this project hold on a small scale?

Runs the experiment of every claim in claims.yaml, one after another. Every claim is then confirmed, refuted or
undecided at this scale, with effect and interval, corrected for all claims together. Finished experiments are not
repeated, and interrupted ones resume. The whole takes hours on a laptop.

$ python experiments/claims.py
$ python experiments/claims.py --experiments ablations cfg_ablation
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.config import FLUSH_S, Folder, Launch
from orchestration.interruption import exit_code, listen, received
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.tracking import schema
from orchestration.tracking.environment import environment_tags
from orchestration.tracking.uri import TrackingError
from soflow.config_base import Section
from soflow.files import write_atomic

if TYPE_CHECKING:
    from dashboards.comparison.claims import JudgedClaim

HERE = Path(__file__).parent
CLAIMS = HERE / "claims.yaml"


class ClaimsOptions(Section):
    experiments: tuple[str, ...] = ()
    """Experiments to run, and whose claims to test. Default: all in claims.yaml."""
    storage: Folder = Path("results")
    """Folder of the experiments' sweeps, and of claims.md."""
    tracking_uri: str | None = None
    """MLflow server (http(s)://…) or database (sqlite:///…). Default: mlflow.db in `storage`."""


def main() -> int:
    listen()
    options = read_command_line(ClaimsOptions, __doc__)
    from dashboards.comparison.claims import judge_claims, page, read_claims  # imports pandas
    from dashboards.reading.sweep_data import SweepData, read_sweep

    claims = read_claims(CLAIMS)
    known = list(dict.fromkeys(claim.experiment for claim in claims))
    if unknown := [name for name in options.experiments if name not in known]:
        fail(f"experiments = {unknown[0]}: must be among {', '.join(known)}")
    claims = [claim for claim in claims if claim.experiment in (options.experiments or known)]
    uri = Launch(storage=options.storage, tracking_uri=options.tracking_uri).resolved_tracking_uri
    for name in dict.fromkeys(claim.experiment for claim in claims):
        if (code := _run(name, options)) >= 128:
            print("interrupted; the same command resumes")
            return code
    sweeps: dict[str, SweepData] = {}

    def read(name: str) -> SweepData:
        sweeps[name] = read_sweep(uri, str((options.storage / f"{name}-small").absolute()))
        return sweeps[name]

    try:
        judged = judge_claims(claims, read)
        path = options.storage / "claims.md"
        facts = _facts()
        write_atomic(path, page(judged, facts, sweeps))
        _show(judged)
        _log(uri, options.storage, judged, facts, path)
    except TrackingError as error:
        fail(error)
    print(f"page: {path}")
    return 0


def _run(name: str, options: ClaimsOptions) -> int:
    """Run an experiment in a subprocess; return its exit code."""
    print(f"\n{name}: started {time.strftime('%H:%M')}", flush=True)
    command = [sys.executable, str(HERE / f"{name}.py"), "--storage", str(options.storage)]
    if options.tracking_uri:
        command += ["--tracking-uri", options.tracking_uri]
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the experiment ends in its own way
            if received() != signal.SIGINT:  # Ctrl-C reaches it as well
                process.terminate()
            process.wait()
            return exit_code("KILLED")
    if code:
        print(f"{name}: ended with exit code {code}")
    return code


def _facts() -> dict[str, str]:
    tags = environment_tags()
    versions = ", ".join(f"{name.partition('.')[2]} {tags[name]}" for name in tags if name.startswith("version."))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{tags['hardware.cpu']}, {tags['hardware.cpu_cores']} cores, {tags['hardware.memory_gib']} GiB",
        "versions": versions,
        "git commit": tags["git_commit"],
    }


def _show(judged: list[JudgedClaim]) -> None:
    from dashboards.comparison.claims import COLUMNS, counts
    from dashboards.comparison.terminal import show_table

    columns = (1, 2, 3, 5, 6)
    rows = [["claim", *(COLUMNS[i] for i in columns)]]
    for claim, result in ((one.claim, one.result) for one in judged):
        cells = result.row()
        rows.append([f"{claim.claim}\n{claim.test}", *(cells[i] for i in columns)])
    show_table(rows, lines=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts(judged).items()))


def _log(uri: str, storage: Path, judged: list[JudgedClaim], facts: dict[str, str], path: Path) -> None:
    """Log the verdicts to MLflow, as a new run each time."""
    from orchestration.tracking.tracker import Tracker

    key = time.strftime("claims-%Y%m%d-%H%M%S")
    tracker = Tracker(uri, schema.EXPERIMENT, storage / "claims-spool")
    tracker.start_run(key, key, {}, environment_tags() | {schema.KIND: schema.CLAIMS_KIND})
    for number, (claim, result) in enumerate((one.claim, one.result) for one in judged):
        if values := result.figures():
            metrics = {f"{claim.experiment}/{number:02d}/{name}": value for name, value in values.items()}
            tracker.log_metrics(key, {name: value for name, value in metrics.items() if value == value}, step=0)
        tracker.set_tags(key, {f"claim.{number:02d}": f"{result.outcome}: {claim.claim}"})
    tracker.log_artifact(key, path)
    tracker.end_run(key, "FINISHED")
    if undelivered := tracker.close(FLUSH_S):
        print(
            f"{undelivered} records have not reached {uri}; they are kept in {storage / 'claims-spool'} "
            "and sent by the next run of this program"
        )


if __name__ == "__main__":
    raise SystemExit(main())
