"""Which claims of the papers and of this project hold on a small scale?

claims.yaml lists claims by the study that tests them. Every study starts with a few seeds. Then seeds are added where
they are expected to decide most claims per hour, until every claim is confirmed, refuted or equivalent within the
smallest effect worth finding, or has all planned seeds. The designs are stated in claims.yaml before the run, and
looking several times is paid for: if log ratios are normal, all verdicts together are wrong with a probability of at
most 5 %.

The page (claims.md, with claims.png) is written again after every look, and so are the measured values (claims.json).
Finished trials are not repeated, and after an interruption the same command resumes.

$ python experiments/claims.py --budget 6
$ python experiments/claims.py --experiments ablations cfg_ablation
$ python experiments/claims.py --budget 0       # train nothing: verdicts on what is there
$ python experiments/claims.py --seed 1000 --storage again --experiments cfg_ablation    # do the verdicts repeat?
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from orchestration.config import FLUSH_S, Folder, Launch
from orchestration.interruption import exit_code, listen, received
from orchestration.storage import check_storage
from orchestration.sweep.cases import value_text
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.tracking import schema
from orchestration.tracking.environment import environment_tags
from orchestration.tracking.uri import TrackingError, check_tracking
from soflow.config_base import ConfigError, Section
from soflow.files import write_atomic

if TYPE_CHECKING:
    from dashboards.claims.budget import Block
    from dashboards.claims.evidence import Gathered
    from dashboards.claims.judge import Judged
    from dashboards.claims.ledger import Ledger

HERE = Path(__file__).parent
CLAIMS = HERE / "claims.yaml"


class ClaimsOptions(Section):
    experiments: tuple[str, ...] = ()
    """Experiments to train. All claims are judged by what has been trained so far. Default: all in claims.yaml."""
    budget: Annotated[float, Field(ge=0)] | None = None
    """Hours to spend. First looks start while time is left, further seeds only if they are predicted to end in time.
    Default: as long as it takes."""
    seed: int | None = None
    """First of the seeds; at least 24 away from those of other runs, to repeat studies in another `storage`.
    Default: each study's own."""
    storage: Folder = Path("results")
    """Folder of the experiments' sweeps, and of claims.md, claims.png and claims.json."""
    tracking_uri: str | None = None
    """MLflow server (http(s)://…) or database (sqlite:///…). Default: mlflow.db in `storage`."""


def main() -> int:
    listen()
    options = read_command_line(ClaimsOptions, __doc__)
    from dashboards.claims.budget import next_block  # imports pandas
    from dashboards.claims.ledger import read_ledger

    failed = set[str]()
    try:
        ledger = read_ledger(CLAIMS)
        check_storage(options.storage)
        chosen = ledger.only(options.experiments)  # to train: shares of the error rate are those of the whole ledger
        begin, gathered = time.monotonic(), _gather(ledger, options)
        while True:
            judged = _leave_page(ledger, gathered, options)
            left = chosen.model_copy(update={"studies": tuple(s for s in chosen.studies if s.experiment not in failed)})
            hours = math.inf if options.budget is None else options.budget - (time.monotonic() - begin) / 3600
            block = next_block(left, judged, gathered, hours)
            if block is None:
                break
            code = _run(block, options)
            if code >= 128:
                print("interrupted; the same command resumes")
                return code
            before, gathered = gathered.get(block.experiment), _gather(ledger, options)
            if code:
                failed.add(block.experiment)
                print(f"{block.experiment}: ended with exit code {code}; its claims keep their verdicts")
            elif gathered.get(block.experiment) == before:
                failed.add(block.experiment)
                print(f"{block.experiment}: nothing new was recorded; its claims keep their verdicts")
        _show(judged)
        _log(judged, options)
    except (TrackingError, ConfigError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes")
        return exit_code("KILLED")
    print(f"page: {options.storage / 'claims.md'}")
    return 1 if failed else 0


def _uri(options: ClaimsOptions) -> str:
    return Launch(storage=options.storage, tracking_uri=options.tracking_uri).resolved_tracking_uri


def _gather(ledger: Ledger, options: ClaimsOptions) -> dict[str, Gathered]:
    """Read what the studies have measured; a study that was not run is left out."""
    from dashboards.claims.evidence import gather
    from dashboards.reading.sweep_data import read_sweep

    check_tracking(_uri(options))
    gathered = {}
    for study in ledger.studies:
        folder = options.storage.absolute() / f"{study.experiment}-small"
        try:
            gathered[study.experiment] = gather(study, read_sweep(_uri(options), str(folder)))
        except TrackingError as error:
            if folder.exists():  # interrupted before its first record, or not to be read
                print(f"{study.experiment}: {error}")
    return gathered


def _run(block: Block, options: ClaimsOptions) -> int:
    """Train a block in a subprocess; return its exit code."""
    what = (
        "first look, or the rest of what was interrupted"
        if block.seeds is None
        else f"{block.seeds} seeds of {', '.join(block.cases)}"
    )
    expected = "" if math.isnan(block.decided) else f", {block.decided:.1f} claims expected in {block.hours:.2f} hours"
    print(f"\n{block.experiment}: {what}{expected}, started {time.strftime('%H:%M')}", flush=True)
    command = [sys.executable, str(HERE / f"{block.experiment}.py"), *flags_of(block), *flags_for_all(options)]
    return run_program(command)


def run_program(command: list[str]) -> int:
    """Run a program, pass signals on to it, and wait for its end; return its exit code, or that of the last signal."""
    interrupted = False
    # In a session of its own, or it would receive Ctrl-C twice: from the terminal as well.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            while True:
                try:
                    code = process.wait()
                except KeyboardInterrupt:
                    interrupted = True
                    process.send_signal(received())
                else:
                    return exit_code("KILLED") if interrupted else code
        finally:  # also after a signal while the last one is passed on
            if process.poll() is None:
                process.terminate()


def flags_for_all(options: ClaimsOptions) -> list[str]:
    """Return the flags that every experiment gets."""
    flags = ["--storage", str(options.storage)]
    if options.tracking_uri:
        flags += ["--tracking-uri", options.tracking_uri]
    if options.seed is not None:
        flags += ["--seed", str(options.seed)]
    return flags


def flags_of(block: Block) -> list[str]:
    """Return the flags of the experiment that trains a block."""
    if block.seeds is None:
        return []
    return ["--more-seeds", f"{block.seeds}:{','.join(map(value_text, block.cases))}"]


def _leave_page(ledger: Ledger, gathered: Mapping[str, Gathered], options: ClaimsOptions) -> list[Judged]:
    """Judge all claims, write claims.md, claims.png and claims.json, and say how far the ledger is."""
    from dashboards.claims.designs import changed_designs
    from dashboards.claims.evidence import to_json
    from dashboards.claims.figure import verdicts_png
    from dashboards.claims.judge import judge
    from dashboards.claims.page import page, summary

    judged, facts = judge(ledger, gathered), _facts(gathered)
    if changed := changed_designs(ledger, gathered, options.storage):
        facts["changed designs"] = " ".join(changed)
        print(*changed, sep="\n")
    write_atomic(options.storage / "claims.png", verdicts_png(judged))
    write_atomic(options.storage / "claims.md", page(judged, facts, gathered, "claims.png"))
    write_atomic(options.storage / "claims.json", to_json(gathered, facts))
    print(f"{len(judged)} claims: {summary(judged)}", flush=True)
    return judged


def _facts(gathered: Mapping[str, Gathered]) -> dict[str, str]:
    tags = environment_tags()
    first = {one.seeds[0] for study in gathered.values() for one in study.evidence.values() if one.seeds}
    versions = ", ".join(f"{name.partition('.')[2]} {tags[name]}" for name in tags if name.startswith("version."))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{tags['hardware.cpu']}, {tags['hardware.cpu_cores']} cores, {tags['hardware.memory_gib']} GiB",
        "versions": versions,
        "git commit": tags["git_commit"],
        "first seeds": ", ".join(map(str, sorted(first))) or "–",
    }


def _show(judged: list[Judged]) -> None:
    from dashboards.comparison.terminal import show_table

    show_table([["claim", "verdict"], *([one.claim.claim, one.sentence] for one in judged)], lines=True)


def _log(judged: list[Judged], options: ClaimsOptions) -> None:
    """Log the verdicts to MLflow, as a new run each time."""
    from orchestration.tracking.tracker import Tracker

    key, spool = time.strftime("claims-%Y%m%d-%H%M%S"), options.storage / "claims-spool"
    tracker = Tracker(_uri(options), schema.EXPERIMENT, spool)
    tracker.start_run(key, key, {}, environment_tags() | {schema.KIND: schema.CLAIMS_KIND})
    for number, one in enumerate(judged):
        values = {"p": one.p, "seeds": float(one.seeds)}
        if one.estimate:
            values["exponent" if one.is_exponent else "ratio"] = one.estimate[0]
        metrics = {f"{one.study.experiment}/{number:02d}/{name}": value for name, value in values.items()}
        tracker.log_metrics(key, {name: value for name, value in metrics.items() if value == value}, step=0)
        tracker.set_tags(key, {f"claim.{number:02d}": f"{one.outcome}: {one.claim.claim}"})
    for name in ("claims.md", "claims.png", "claims.json"):
        tracker.log_artifact(key, options.storage / name)
    tracker.end_run(key, "FINISHED")
    if undelivered := tracker.close(FLUSH_S):
        print(
            f"{undelivered} records have not reached {_uri(options)}; they are kept in {spool} and sent by the next "
            "run of this program"
        )


if __name__ == "__main__":
    raise SystemExit(main())
