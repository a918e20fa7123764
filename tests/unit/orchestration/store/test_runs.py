"""Uploads in the background, and runs that are fetched while the store is away."""

from __future__ import annotations

import threading

import pytest

from orchestration.store import runs
from orchestration.store.location import store_of
from orchestration.store.parts import Pusher
from orchestration.store.runs import Uploads, fetch_run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runs, "FIRST_RETRY_S", 0.01)


def test_uploads_do_not_wait_and_the_end_waits_for_them(machine, monkeypatch):
    here, there = machine("here"), machine("there")
    slow = threading.Event()
    push = Pusher.push
    monkeypatch.setattr(Pusher, "push", lambda self: (slow.wait(30), push(self)))
    uploads = Uploads()
    for step in (10, 20, 30):
        (here / "checkpoint-00000010.pt").write_text(f"weights at {step}")
        uploads.add(here)  # returns although none is uploaded
    fetch_run(there)
    assert not list(there.glob("*.pt"))
    slow.set()
    uploads.wait()
    fetch_run(there)
    assert (there / "checkpoint-00000010.pt").read_text() == "weights at 30"


def test_copies_of_plug_ins_come_whole(machine):
    here, there = machine("here"), machine("there")
    for name in ("code/lab.py", "code/pkg/__init__.py", "code/pkg/sub/deeper/mod.py"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    Pusher(store_of(here), here, runs.RUN).push()
    fetch_run(there)
    assert (there / "code/pkg/sub/deeper/mod.py").read_text() == "code/pkg/sub/deeper/mod.py"


def test_an_outage_is_named_once_and_survived(machine, monkeypatch, caplog):
    here, there = machine("here"), machine("there")
    (here / "config.yaml").write_text("a: 1")
    failures = iter([ConnectionError("no route"), OSError("no route"), None])
    push = Pusher.push

    def fail_twice(self):
        if error := next(failures):
            raise error
        push(self)

    monkeypatch.setattr(Pusher, "push", fail_twice)
    uploads = Uploads()
    uploads.add(here)
    uploads.wait()
    fetch_run(there)
    assert (there / "config.yaml").read_text() == "a: 1"
    named = [message for message in caplog.messages if "no route" in message]
    assert len(named) == 1
    assert f"{here}: is uploaded again" in caplog.messages


def test_a_run_is_fetched_once_the_store_is_back(machine, monkeypatch, caplog):
    here, there = machine("here"), machine("there")
    (here / "config.yaml").write_text("a: 1")
    Pusher(store_of(here), here, runs.RUN).push()
    genuine, failures = runs.pull, iter([OSError("away"), OSError("away")])

    def away_twice(*arguments):
        if error := next(failures, None):
            raise error
        genuine(*arguments)

    monkeypatch.setattr(runs, "pull", away_twice)
    fetch_run(there)
    assert (there / "config.yaml").exists()
    assert sum("cannot be read (away); trying again until it can" in message for message in caplog.messages) == 1


def test_a_store_that_was_never_reached_is_given_up_with_the_reason(machine, monkeypatch):
    """A node may lack credentials, and only its log would say so."""
    there = machine("there")
    monkeypatch.setattr(runs, "_reached", set())
    monkeypatch.setattr(runs, "pull", lambda *arguments: (_ for _ in ()).throw(OSError("403 forbidden")))
    with pytest.raises(OSError, match=r"s3://bucket/.* cannot be used on .*: 403 forbidden"):
        fetch_run(there)


def test_a_damaged_checkpoint_is_left_out(machine, caplog):
    here, there = machine("here"), machine("there")
    for name in ("checkpoint-00000010.pt", "checkpoint-00000020.pt"):
        (here / name).write_text(name)
    Pusher(store_of(here), here, runs.RUN).push()
    with store_of(here).filesystem.open_output_stream(store_of(here).object_of(here / name)) as stream:
        stream.write(b"x")
    fetch_run(there)
    assert [path.name for path in there.glob("*.pt")] == ["checkpoint-00000010.pt"]
    assert "checkpoint-00000020.pt: does not match its checksum" in caplog.text


def test_on_a_disk_nothing_happens(tmp_path):
    fetch_run(tmp_path)
    uploads = Uploads()
    uploads.add(tmp_path)
    uploads.wait()
    assert list(tmp_path.iterdir()) == []
