"""The token of a local Ray cluster, and the size of any."""

from __future__ import annotations

import re

import pytest

from orchestration import cluster, slots
from orchestration.config import ResourcesConfig
from soflow.config_base import ConfigError


def test_a_local_cluster_s_token_is_readable_by_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setattr(cluster, "TOKEN_FILE", tmp_path / ".ray" / "auth_token")
    cluster._create_token()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    token = (tmp_path / ".ray" / "auth_token").read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    (tmp_path / ".ray" / "auth_token").chmod(0o644)  # as Ray creates it
    cluster._create_token()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / ".ray" / "auth_token").read_text() == token


def node(cpus: float, gpus: float = 0, alive: bool = True, gib: float = 1) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, "memory": gib * 2**30} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        ({}, [node(2), node(3), node(0)], 5),
        ({}, [node(2), node(3, alive=False)], 2),
        ({"cpus_per_worker": 2}, [node(3), node(3)], 2),  # a worker is on one node
        ({"num_workers": 2}, [node(1), node(1), node(1)], 1),  # a group may be on several
        ({"gpus_per_worker": 1.0}, [node(8, 2), node(8)], 2),
        ({"gpus_per_worker": 0.1}, [node(64, 1)], 10),
        ({"gpus_per_worker": 0.5, "cpus_per_worker": 4}, [node(7, 8)], 1),
        ({"memory_gib_per_worker": 24}, [node(64, gib=20), node(64, gib=50)], 2),
        ({}, [], 0),
    ],
)
def test_groups_that_fit_on_the_nodes_are_counted(resources, nodes, expected):
    assert slots.groups_that_fit(ResourcesConfig(**resources), nodes) == expected


def test_a_fixed_number_of_slots_asks_no_cluster():
    assert slots.Slots(ResourcesConfig(), 3)() == 3


@pytest.mark.parametrize(
    ("resources", "available", "message"),
    [
        (
            {"cpus_per_worker": 3},
            {"CPU": 5},
            "2 x 1 workers x 3 CPUs: need 6 CPUs, the cluster has 5; .*cpus_per",
        ),
        ({"gpus_per_worker": 0.5}, {"CPU": 9}, "2 x 1 workers x 0.5 GPUs: need 1 GPUs, the cluster has 0; lower"),
        (
            {"memory_gib_per_worker": 24},
            {"CPU": 9, "memory": 32 * 2**30},
            "2 x 1 workers x 24 GiB of memory: need 48 GiB of memory, the cluster has 32; .*memory_gib_per",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(resources, available, message):
    with pytest.raises(ConfigError, match=message):
        cluster.check_fits(ResourcesConfig(**resources), 2, available, "the cluster")
    cluster.check_fits(ResourcesConfig(**resources), 1, {"CPU": 9, "GPU": 1, "memory": 32 * 2**30}, "the cluster")
