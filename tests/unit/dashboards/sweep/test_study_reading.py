"""The study behind a report: from the database that the sweep's own file names, in which nothing changes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from dashboards.reading.sweep_data import read_sweep
from tests.sweep_store import SweepStore

TRIALS = [("finished", [3.0]), ("finished", [2.0])]


@pytest.fixture
def store(tmp_path):
    return SweepStore(tmp_path)


def replace_by_another_program_s(database: Path) -> bytes:
    """Put a database without a study in place of one; its content."""
    database.unlink()
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE mine (value INTEGER)")
    return database.read_bytes()


def test_a_database_is_read_and_left_as_it_was(store, tmp_path):
    database = tmp_path / "a study's database.db"
    parent = store.sweep("stored", TRIALS, study_storage=f"sqlite:///{database}")
    before = database.read_bytes()
    database.chmod(0o444)
    data = read_sweep(store.uri, parent)
    assert data.notes == []
    assert len(data.study.trials) == 2
    assert database.read_bytes() == before


def test_a_database_that_only_the_run_s_parameters_name_is_not_opened(store, tmp_path):
    foreign = tmp_path / "foreign.db"
    parent = store.sweep("hostile", TRIALS, study_storage=f"sqlite:///{foreign}")
    (store.folder_of(parent) / "sweep.yaml").unlink()
    before = replace_by_another_program_s(foreign)
    data = read_sweep(store.uri, parent)
    assert data.study is None
    assert foreign.read_bytes() == before
    foreign.unlink()
    read_sweep(store.uri, parent)
    assert not foreign.exists()


def test_a_database_of_something_else_gets_no_tables(store, tmp_path):
    foreign = tmp_path / "foreign.db"
    parent = store.sweep("misled", TRIALS, study_storage=f"sqlite:///{foreign}")
    before = replace_by_another_program_s(foreign)
    data = read_sweep(store.uri, parent)
    assert data.study is None
    assert "The Optuna study cannot be read" in data.notes[0]
    assert foreign.read_bytes() == before
