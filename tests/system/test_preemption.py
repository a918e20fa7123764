"""A cluster that announces the end of a node, as clouds do before they take a spot machine back."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from cluster import RAY, Cluster
from session import wait_for_line

import soflow
from soflow.training.checkpoints import INTERIM_FILE

STEPS, NOTICE_S = 2400, 25
FLAGS = [
    *("--num-trials", "2", "--max-concurrent", "auto", "--early-stopping.kind", "none", "--name", "sweep"),
    *("--trial-retries", "0", "--training.total-steps", str(STEPS), "--training.report-every", str(STEPS)),
    *("--training.batch-size", "32", "--evaluation.num-samples", "64"),
]
NODE = "next(node['NodeID'] for node in ray.nodes() if node['Resources'].get('CPU'))"


def wait_for(path: Path, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear within {limit_s} s"
        time.sleep(0.1)


@pytest.mark.soak  # test_interval.py checks all but the part of Ray
def test_a_node_that_joins_is_used_and_one_taken_back_costs_the_steps_since_the_notice_and_no_retry(session):
    with Cluster((0,)) as cluster:
        flags = ["--address", cluster.address, "--wait-for-nodes-s", "120"]
        sweep = session.start("sweep_schedule.py", *FLAGS, *flags, "--progress", "plain")
        wait_for_line(sweep, "waiting for nodes, at most 120 s")
        first = cluster.add_node(1)
        node = cluster.ask(NODE)
        wait_for_line(sweep, "starting the training workers")
        trial = session.storage / "sweep" / "trials" / "0000"
        wait_for(trial / "config.yaml", 120)
        cluster.add_node(1)
        wait_for(trial.with_name("0001") / "config.yaml", 120)
        assert not list((trial / "reports").glob("*.json"))  # both run at once
        announced = time.time()
        notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
        notice += ["--node-id", node, "--deadline-remaining-seconds", str(NOTICE_S)]
        subprocess.run([RAY, "drain-node", "--address", cluster.address, *notice], check=True, capture_output=True)
        interim = trial / INTERIM_FILE
        wait_for(interim, NOTICE_S)
        print(f"checkpoint {interim.stat().st_mtime - announced:.1f} s after the notice")
        time.sleep(max(0.0, announced + NOTICE_S - time.time()))
        cluster.remove_node(first)
        cluster.add_node(1)
        output, _ = sweep.communicate(timeout=200)
        assert sweep.returncode == 0, output
    assert "2 of 2 trials ended (2 finished)" in output
    run = soflow.load_run(trial)
    undisturbed = soflow.train(run.config, session.storage / "undisturbed", progress=False)
    same = [name for name in run.metrics if name.startswith(("loss/", "fid", "kid", "gradient/"))]
    assert {name: run.metrics[name] for name in same} == {name: undisturbed.metrics[name] for name in same}
