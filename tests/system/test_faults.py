"""Losing a worker, an actor, a node, the driver, the server or the disk; Ctrl-C; and sweeps that cannot start."""

from __future__ import annotations

import os
import signal
import socket
import time

import pandas as pd
import pytest
from chaos import FAULTS, FEW_TRIALS, SWEEP, Chaos, check
from cluster import Cluster
from session import wait_for_line

OUTAGE_S = 10


# In `make test`, test_stores.py has the loss of nodes and of the driver, test_servers.py that of the server's password,
# test_workers.py that of workers.
@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 7))
def test_a_sweep_survives_the_loss_of_everything_but_its_storage(long_undisturbed, tmp_path, seed):
    with Cluster((2, 2, 2)) as cluster:  # whose nodes are killed
        chaos = Chaos(tmp_path / "sweep", cluster, seed, OUTAGE_S)
        chaos.run(FAULTS)
    print(*chaos.log, sep="\n")
    check(chaos, long_undisturbed)


def test_ctrl_c_also_twice_stops_cleanly_and_resume_continues_to_the_same_numbers(undisturbed, session):
    sweep = session.start("sweep_schedule.py", *SWEEP, "--num-trials", str(FEW_TRIALS), "--progress", "plain")
    wait_for_line(sweep, "trial 1 running, step 16/")
    os.kill(sweep.pid, signal.SIGINT)
    time.sleep(2)
    os.kill(sweep.pid, signal.SIGINT)  # by somebody impatient
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, output
    assert f"resume with: python experiments/sweep_schedule.py --resume {session.storage / 'sweep'}\n" in output
    session.assert_nothing_left()
    before = session.runs()
    assert before["sweep"].info.status == "KILLED"
    assert {run.info.status for run in before.values()} <= {"KILLED", "FINISHED"}

    session.succeed("sweep_schedule.py", "--resume", str(session.storage / "sweep"))
    runs = session.runs()
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert before["sweep-0000"].info.run_id == runs["sweep-0000"].info.run_id
    numbers = ["trial", "state", "step", "fid", "kid", "class_consistency"]
    tables = [pd.read_csv(folder / "sweep" / "trials.csv")[numbers] for folder in (undisturbed, session.storage)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


REFUSALS = [
    (["--address", "127.0.0.1:1"], "address = 127.0.0.1:1: no connection"),
    (["--tracking-uri", "http://127.0.0.1:1"], "tracking_uri = http://127.0.0.1:1: cannot be reached"),
    (["--storage", "/dev/null/here"], "storage = /dev/null/here: must be a writable folder"),
    (["--max-concurrent", "500"], "resources = 500 x 1 workers x 1 CPUs: need 500 CPUs"),
    (["--resume", "nothing"], "resume = nothing: must be the name or folder of a sweep"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSALS)
def test_what_cannot_work_is_refused_in_one_line_before_ray_starts(session, flags, message):
    begin = time.monotonic()
    assert session.fail("sweep_schedule.py", *flags).startswith(f"error: {message}")
    assert time.monotonic() - begin < 15
    assert not session.processes()


def test_an_address_of_something_else_is_refused(session):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        message = session.fail("train.py", "--address", f"127.0.0.1:{silent.getsockname()[1]}")
    assert "must be the address of a Ray cluster" in message
    assert time.monotonic() - begin < 40
