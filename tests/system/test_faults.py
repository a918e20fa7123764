"""Losing a worker, an actor, a node, the driver, the server or the disk; and sweeps that cannot start."""

from __future__ import annotations

import socket

import pytest
from chaos import FAULTS, Chaos, check
from cluster import Cluster

OUTAGE_S = 10


# In `make test`, test_sweep.py has Ctrl-C, test_experiments.py the loss of the driver and of a worker; the tests of the
# tracker and of stores have servers and disks that fail. Only `make soak` has the loss of a node, here and in
# test_stores.py, and SIGTERM to a program with Ray, in test_sweep.py.
@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 7))
def test_a_sweep_survives_the_loss_of_everything_but_its_storage(long_undisturbed, tmp_path, seed):
    with Cluster((2, 2, 2)) as cluster:  # whose nodes are killed
        chaos = Chaos(tmp_path / "sweep", cluster, seed, OUTAGE_S)
        chaos.run(FAULTS)
    print(*chaos.log, sep="\n")
    check(chaos, long_undisturbed)


REFUSALS = [
    (["--address", "127.0.0.1:1"], "address = 127.0.0.1:1: no connection"),
    (["--tracking-uri", "http://127.0.0.1:1"], "tracking_uri = http://127.0.0.1:1: cannot be reached"),
    (["--storage", "/dev/null/here"], "storage = /dev/null/here: must be a writable folder"),
    (["--max-concurrent", "500"], "resources = 500 x 1 workers x 1 CPUs: need 500 CPUs"),
    (["--resume", "nothing"], "resume = nothing: must be the name or folder of a sweep"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSALS)
def test_what_cannot_work_is_refused_in_one_line_before_ray_starts(session, flags, message):
    assert session.fail("sweep_schedule.py", *flags).startswith(f"error: {message}")
    assert not session.processes()


def test_an_address_of_something_else_is_refused(session):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        message = session.fail("train.py", "--address", f"127.0.0.1:{silent.getsockname()[1]}")
    assert "must be the address of a Ray cluster" in message
