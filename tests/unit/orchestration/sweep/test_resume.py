"""Resuming a sweep: its folder has one owner, and damaged files are rejected by name."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from optuna.storages.journal import JournalFileBackend

from orchestration.storage import SWEEP_FILE, create, new_folder, sole_owner
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.resume import check_journal, saved_config
from orchestration.sweep.search_space import build
from orchestration.sweep.study import SweepStudy
from orchestration.sweep.study_storage import open_storage
from soflow import files
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml, to_yaml


def sweep_folder(storage: Path, **fields) -> tuple[SweepConfig, Path]:
    """Create a sweep that was interrupted with two trials in its study."""
    config = SweepConfig(name="s", storage=storage, num_trials=4, **fields)
    folder = new_folder(config)
    create(folder, SWEEP_FILE, to_yaml(config))
    study = SweepStudy(config, folder, build(config))
    for number in range(2):
        study.next_trial(set(range(number)))
    return config, folder


def test_a_folder_is_never_taken_twice(tmp_path):
    config, folder = sweep_folder(tmp_path)
    with pytest.raises(ConfigError, match=f"name = s: is taken in {tmp_path}; choose another or use --resume"):
        new_folder(config)
    with pytest.raises(ConfigError, match="name = s: is taken"):  # by another process, after new_folder looked
        create(folder, SWEEP_FILE, "another: sweep")
    assert read_yaml(folder / SWEEP_FILE)["name"] == "s"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_a_sweep_has_one_process_at_a_time(tmp_path):
    _, folder = sweep_folder(tmp_path)
    another = pytest.raises(ConfigError, match="resume = s: another process is already running this sweep")
    with sole_owner(folder), another, sole_owner(folder):
        pass
    with sole_owner(folder):
        pass


def test_a_damaged_study_journal_is_refused_by_name_and_line(tmp_path):
    _, folder = sweep_folder(tmp_path)
    journal = folder / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines) + b'{"op_code": 4, "wor')  # what a killed process leaves
    check_journal(journal)
    journal.write_bytes(b"".join([*lines[:3], lines[3][:10] + b"\n", *lines[4:]]))
    with pytest.raises(ConfigError, match=re.escape(f"{journal}: line 4 is damaged")):
        check_journal(journal)


def test_a_journal_waits_for_its_disk_and_keeps_whole_lines(tmp_path, monkeypatch, capsys):
    config, folder = sweep_folder(tmp_path)
    study = SweepStudy(config, folder, build(config))
    genuine, times = JournalFileBackend.append_logs, []

    def full_twice(self, logs):
        times.append(logs)
        if len(times) < 3:
            with open(self._file_path, "ab") as file:
                file.write(b'{"op_code": 4, "wor')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        genuine(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", full_twice)
    monkeypatch.setattr(files, "RETRY_S", 0.01)
    study.fail(0, "a reason")
    check_journal(folder / "study.journal")
    assert "study.journal: cannot be written (No space left on device); waiting until it can" in capsys.readouterr().out
    open_storage.cache_clear()
    again = SweepStudy(config, folder, build(config))
    assert again.trials()[0].user_attrs["reason"] == "a reason"


@pytest.mark.parametrize(
    ("text", "reason"), [("num_trials: 4\nsampler: [", "cannot be read"), ("num_trialz: 4", "num_trialz: unknown key")]
)
def test_a_damaged_sweep_configuration_is_refused_by_name(text, reason, tmp_path):
    _, folder = sweep_folder(tmp_path)
    (folder / SWEEP_FILE).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"{folder / SWEEP_FILE}: {reason}")):
        saved_config(folder)
