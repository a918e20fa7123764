"""Names in MLflow: users' own tags do not replace those of the tracker."""

from __future__ import annotations

import pytest

from orchestration.config import TrainConfig
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.run import run_sweep
from orchestration.tracking.schema import check_own_tags
from orchestration.train import train
from soflow.config_base import ConfigError


@pytest.mark.parametrize("name", ["state", "objective", "device", "num_trials", "soflow.kind", "mlflow.user", "fid_x"])
def test_the_program_s_tags_are_refused(name):
    with pytest.raises(ConfigError, match=f"tags = {name}: is a tag that the program sets; choose another name"):
        check_own_tags(["purpose", name])


@pytest.mark.parametrize(
    "launch",
    [
        lambda values: train(TrainConfig(**values)),
        lambda values: run_sweep(SweepConfig(**values), lambda folder, attach: None),
    ],
)
def test_they_are_refused_before_anything_starts(launch, tmp_path):
    with pytest.raises(ConfigError, match="tags = state"):
        launch({"tags": ["purpose=a=b", "state=good"], "storage": tmp_path, "name": "x"})
    assert list(tmp_path.iterdir()) == []
