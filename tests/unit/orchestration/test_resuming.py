"""Resuming: what the command line may change, where the storage is, and that a copy is not resumed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from orchestration.config import TrainConfig
from orchestration.resuming import check_original, note_location, resumed
from orchestration.storage import SWEEP_FILE, resume_command
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.resume import saved_config
from orchestration.terminal.command_line import read_command_line
from soflow.config_base import ConfigError
from soflow.config_files import to_yaml


def sweep(storage: Path, **fields) -> Path:
    folder = storage / "one"
    folder.mkdir(parents=True)
    (folder / SWEEP_FILE).write_text(to_yaml(SweepConfig(name="one", storage=storage, **fields)))
    note_location(folder)
    return folder


def read(*arguments: str) -> SweepConfig:
    return read_command_line(SweepConfig, "", arguments, layers=[{"training": {"batch_size": 64}, "num_trials": 3}])


def test_what_does_not_change_the_results_is_taken(tmp_path):
    folder = sweep(tmp_path, address="old:1", max_concurrent=3)
    flags = [
        "--address",
        "new:6379",
        "--max-concurrent",
        "1",
        "--trial-retries",
        "7",
        "--tracking-uri",
        "http://m:5000",
    ]
    flags += ["--resources.num-workers", "2", "--num-trials", "30", "--progress", "json"]
    config = resumed(saved_config(folder), read("--resume", "one", *flags), folder)
    assert (config.address, config.max_concurrent, config.trial_retries) == ("new:6379", 1, 7)
    assert (config.tracking_uri, config.resources.num_workers) == ("http://m:5000", 2)
    assert (config.num_trials, config.progress) == (30, "json")
    assert config.training.batch_size == SweepConfig().training.batch_size  # the program's defaults are not applied


@pytest.mark.parametrize(
    ("objective", "steps", "reason"),
    [
        ({"name": "meanflow"}, 99, "only more steps can be added"),
        ({"name": "soflow"}, 2000, "r(k, K) depends on it, so all earlier steps would have differed"),
        ({"name": "alpha_flow"}, 2000, "alpha(k) depends on it"),
        ({"name": "soflow", "gap_schedule": "constant"}, 2000, ""),
        ({"name": "meanflow"}, 2000, ""),
    ],
)
def test_a_run_is_extended_where_no_schedule_depends_on_its_length(tmp_path, objective, steps, reason):
    saved = TrainConfig(name="one", storage=tmp_path, objective=objective)
    flags = read_command_line(TrainConfig, "", ["--resume", "one", "--training.total-steps", str(steps)])
    if reason:
        with pytest.raises(ConfigError, match=rf"training\.total_steps = {steps}: .* it is 1600 \({re.escape(reason)}"):
            resumed(saved, flags, tmp_path / "one")
    else:
        assert resumed(saved, flags, tmp_path / "one").training.total_steps == steps


def test_what_is_not_given_stays(tmp_path):
    folder = sweep(tmp_path, address="old:1", max_concurrent=3, num_trials=5)
    config = resumed(saved_config(folder), read("--resume", "one"), folder)
    assert config == saved_config(folder)
    # The command that started it may be repeated.
    flags = ["--resume", "one", "--training.total-steps", str(config.training.total_steps), "--storage", str(tmp_path)]
    assert resumed(saved_config(folder), read(*flags), folder) == saved_config(folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--training.total-steps", "99"],
            r"training\.total_steps = 99: cannot change on resume, it is 1600 \(the trials of a sweep are compared at "
            r"equal steps\); .* can$",
        ),
        (["--objective", "meanflow"], r"objective\.name = meanflow: cannot change on resume, it is soflow"),
        (["--objective.r-end", "0.03"], r"objective\.r_end = 0\.03: cannot change on resume, it is 0\.002"),
        (["--seed", "5"], r"seed = 5: cannot change on resume, it is 0"),
        (["--evaluation.nfe", "1", "4"], r"evaluation\.nfe = \[1, 4\]: cannot change on resume, it is None"),
        (["--name", "two"], r"name = two: cannot change on resume, it is one"),
    ],
)
def test_what_changes_the_results_is_refused_in_one_line(tmp_path, flags, message):
    folder = sweep(tmp_path)
    with pytest.raises(ConfigError, match=f"^{message}"):
        resumed(saved_config(folder), read("--resume", "one", *flags), folder)


def test_a_run_takes_no_more_steps(tmp_path):
    saved = TrainConfig(name="one", storage=tmp_path)
    config = read_command_line(TrainConfig, "", ["--resume", "one", "--training.total-steps", "4000"])
    with pytest.raises(ConfigError, match=r"^training\.total_steps = 4000: cannot change on resume, it is 1600"):
        resumed(saved, config, tmp_path / "one")


def test_storage_and_databases_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = SweepConfig(storage="here", tracking_uri="sqlite:///m.db", study_storage="sqlite:///study.db")
    assert config.storage == tmp_path / "here"
    assert config.tracking_uri == f"sqlite:///{tmp_path}/m.db"
    assert config.study_storage == f"sqlite:///{tmp_path}/study.db"
    assert SweepConfig().storage == tmp_path / "results"
    assert SweepConfig().resolved_tracking_uri == f"sqlite:///{tmp_path}/results/mlflow.db"
    assert SweepConfig(tracking_uri="postgresql://host/db").tracking_uri == "postgresql://host/db"
    assert resume_command(Path("here") / "one").endswith(f" --resume {tmp_path}/here/one")


def test_a_moved_storage_takes_its_records_along(tmp_path):
    folder = sweep(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    folder = tmp_path / "new" / "one"
    check_original(folder)
    config = resumed(saved_config(folder), read("--resume", str(folder)), folder)
    assert config.storage == tmp_path / "new"
    assert config.resolved_tracking_uri == f"sqlite:///{tmp_path}/new/mlflow.db"
    with pytest.raises(ConfigError, match=f"^storage = {os.sep}: one is in {tmp_path}/new; leave storage out"):
        resumed(saved_config(folder), read("--resume", str(folder), "--storage", os.sep), folder)


def test_a_copy_is_refused_while_its_original_exists(tmp_path):
    original = sweep(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    with pytest.raises(ConfigError, match=f"^resume = {copy}: is a copy of {original} and would write into its runs"):
        check_original(copy)
    check_original(original)
    link = tmp_path / "link"
    link.symlink_to(original)
    check_original(link)
    shutil.rmtree(original)
    check_original(copy)
