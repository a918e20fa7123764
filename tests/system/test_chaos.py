"""What a sweep can lose is taken from it in turn at random moments: then nothing is missing and nothing there twice."""

from __future__ import annotations

import pytest
from chaos import FAULTS, Chaos, check
from cluster import Cluster

pytestmark = pytest.mark.slow

SEEDS = (1, 2, 3)
OUTAGE_S = 10


@pytest.fixture(scope="module")
def cluster():
    with Cluster((2, 2, 2)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    chaos = Chaos(tmp_path_factory.mktemp("undisturbed") / "sweep", cluster, seed=0)
    chaos.run(faults=())
    return chaos.folder


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sweep_survives_the_loss_of_everything_but_its_storage(cluster, undisturbed, tmp_path, seed):
    chaos = Chaos(tmp_path / "sweep", cluster, seed, OUTAGE_S)
    chaos.run(FAULTS)
    print(*chaos.told, sep="\n")
    check(chaos, undisturbed)
