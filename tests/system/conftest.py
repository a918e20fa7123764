"""Shared by system tests: one Ray cluster, one finished sweep, a browser."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import chromium  # noqa: F401 - a fixture
from chaos import FEW_TRIALS, Chaos
from cluster import Cluster, new_token
from session import SMALL, Session, wait_for_line

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every Ray cluster asks for this token. Ray reads the mode when it is imported, which forked programs do early."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in new_token(tmp_path_factory.mktemp("token")).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster that asks for a token, of two nodes with two CPUs each, started once."""
    with Cluster((2, 2)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep to which nothing happens, with which every disturbed one must agree to the last digit."""
    chaos = Chaos(tmp_path_factory.mktemp("undisturbed") / "sweep", cluster, seed=0, num_trials=FEW_TRIALS)
    chaos.run(faults=())
    return chaos.folder


@pytest.fixture(scope="session")
def long_undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with as many trials as all faults together need."""
    chaos = Chaos(tmp_path_factory.mktemp("long") / "sweep", cluster, seed=0)
    chaos.run(faults=())
    return chaos.folder


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Programs that start and stop Ray themselves."""
    return Session(tmp_path)


@pytest.fixture
def shared(tmp_path: Path, cluster: Cluster) -> Session:
    """Programs on the shared cluster."""
    return Session(tmp_path, cluster.address)


@dataclass(frozen=True)
class Interrupted:
    """What a sweep left behind that was ended by Ctrl-C."""

    session: Session
    output: str
    code: int
    runs: dict
    """MLflow's runs by name, as they were then."""


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """A sweep `one` of six trials, started as on a laptop, which somebody impatient ended by Ctrl-C twice."""
    session = Session(tmp_path_factory.mktemp("finished"))
    rate = "optimizer.learning_rate"
    flags = ["--num-trials", "6", "--early-stopping.grace-reports", "1", "--progress", "plain", "--max-concurrent", "1"]
    flags += ["--tags", "purpose=tests", "paper figure=4 = b", "--note", "For the **tests**."]
    flags += ["--search", f"{rate}=0.003,0.00001,1e30", "objective.r_end=0.001:0.05:log", "--known-points"]
    # Two that learn, one that diverges, two that learn too slowly and are stopped; the sampler chooses the others.
    flags += [f"{rate}={value}" for value in ("0.003", "0.003", "1e30", "0.00001", "0.00001")]
    sweep = session.start("sweep_schedule.py", *SMALL, "--name", "one", *flags)
    lines = wait_for_line(sweep, "trial 1 running, step 4/")
    os.kill(sweep.pid, signal.SIGINT)
    lines += wait_for_line(sweep, "interrupted")
    with suppress(ProcessLookupError):  # it may have ended by now
        os.kill(sweep.pid, signal.SIGINT)
    output = "".join(lines) + sweep.communicate(timeout=120)[0]
    session.assert_nothing_left()
    return Interrupted(session, output, sweep.returncode, session.runs())


@pytest.fixture(scope="session")
def finished(interrupted: Interrupted) -> tuple[Session, str]:
    """The sweep `one` resumed with two trials more, and the output of both programs; some failed or were stopped early.

    Tests read it; the one that extends it runs last.
    """
    session = interrupted.session
    output = session.succeed("sweep_schedule.py", "--resume", "one", "--num-trials", "8", "--max-concurrent", "2")
    session.assert_nothing_left()
    return session, interrupted.output + output


@pytest.fixture(scope="session")
def trained(finished: tuple[Session, str]) -> tuple[Session, Path]:
    """A run `again` of the sweep's best trial, with snapshots of its averages."""
    session, _ = finished
    best = str(session.storage / "one" / "best.yaml")
    session.succeed("train.py", "--config", best, "--name", "again", "--training.snapshot-every", "2")
    return session, session.storage / "again"
