"""A cluster that announces the end of a node, as clouds do before they take a spot machine back."""

from __future__ import annotations

import subprocess
import time

from cluster import RAY, Cluster
from session import wait_for_line

import soflow
from soflow.training.checkpoints import INTERIM_FILE

STEPS, NOTICE_S = 1200, 12
FLAGS = [
    *("--num-trials", "1", "--max-concurrent", "1", "--early-stopping.kind", "none", "--name", "sweep"),
    *("--trial-retries", "0", "--training.total-steps", str(STEPS), "--training.report-every", str(STEPS)),
    *("--training.batch-size", "32", "--evaluation.num-samples", "64"),
]
WORKER_NODE = (
    "__import__('ray.util.state').util.state.list_actors(filters=[('class_name', '=', 'RayTrainWorker'), "
    "('state', '=', 'ALIVE')])[0].node_id"
)


def test_a_node_taken_back_costs_the_steps_since_the_notice_and_no_retry(session):
    with Cluster((0, 1, 1)) as cluster:
        sweep = session.start("sweep_schedule.py", *FLAGS, "--address", cluster.address, "--progress", "plain")
        wait_for_line(sweep, "starting the training workers")
        trial = session.storage / "sweep" / "trials" / "0000"
        while not (trial / "config.yaml").exists():
            time.sleep(0.2)
        index, node = cluster.processes("ray::RayTrainWorker")[0][0], cluster.ask(WORKER_NODE)
        announced = time.time()
        notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
        notice += ["--node-id", node, "--deadline-remaining-seconds", str(NOTICE_S)]
        subprocess.run([RAY, "drain-node", "--address", cluster.address, *notice], check=True, capture_output=True)
        interim = trial / INTERIM_FILE
        while not interim.exists():
            assert time.time() < announced + NOTICE_S, "no checkpoint on the notice"
            time.sleep(0.1)
        print(f"checkpoint {interim.stat().st_mtime - announced:.1f} s after the notice")
        time.sleep(max(0.0, announced + NOTICE_S - time.time()))
        cluster.remove_node(cluster.nodes[index])
        output, _ = sweep.communicate(timeout=200)
        assert sweep.returncode == 0, output
    assert "1 of 1 trials ended (1 finished)" in output
    run = soflow.load_run(trial)
    undisturbed = soflow.train(run.config, session.storage / "undisturbed", progress=False)
    same = [name for name in run.metrics if name.startswith(("loss/", "fid", "kid", "gradient/"))]
    assert {name: run.metrics[name] for name in same} == {name: undisturbed.metrics[name] for name in same}
    assert run.metrics["time/train_s"] < 60
