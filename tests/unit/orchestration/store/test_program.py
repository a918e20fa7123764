"""The files of a sweep's program in a store: claims, names, and what is delivered when."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from orchestration.config import TrainConfig
from orchestration.storage import check_storage, create, fetch_to_read, new_folder, resumed_folder, sole_owner
from orchestration.store import owner, program
from orchestration.store.location import store_of
from orchestration.store.owner import CLOCKS_AGREE_S, OWNER, _machine
from orchestration.store.parts import DRIVER, RUN, Pusher, pull
from orchestration.store.program import Delivery
from soflow.config_base import ConfigError
from tests.object_store import objects


def write_sign(folder, **values) -> None:
    store = store_of(folder)
    sign = {"id": "x", "host": "elsewhere", "machine": "another", "pid": 7, "time": time.time()} | values
    with store.filesystem.open_output_stream(store.object_of(folder / OWNER)) as stream:
        stream.write(json.dumps(sign).encode())


@contextmanager
def signs_from_elsewhere(folder) -> Iterator[None]:
    """Write signs again and again, as a live process does: one alone may come before or after every look at it."""
    ended = threading.Event()

    def keep_signing() -> None:
        while not ended.wait(0.1):
            write_sign(folder)

    thread = threading.Thread(target=keep_signing)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def sign_of(folder) -> dict:
    store = store_of(folder)
    with store.filesystem.open_input_stream(store.object_of(folder / OWNER)) as stream:
        return json.loads(stream.read())


def test_one_program_at_a_time_runs_a_sweep(machine):
    here, there = machine("here"), machine("there")
    with sole_owner(here):
        assert sign_of(here)["host"] == socket.gethostname()
        message = rf"resume = run: process {os.getpid()} on .* is running it; stop it first"
        with pytest.raises(ConfigError, match=message), sole_owner(there):
            pass
    with sole_owner(there):
        pass


@pytest.mark.parametrize(
    "sign",
    [
        {"time": time.time() - CLOCKS_AGREE_S - 60},  # on another machine
        {"machine": _machine(), "pid": 2**22 + 1},  # on this one
        {"time": 0},  # ended
    ],
)
def test_a_dead_program_s_sweep_is_free_at_once(machine, sign):
    here = machine("here")
    write_sign(here, **sign)
    with sole_owner(here):
        pass


@pytest.mark.parametrize("ahead_s", [0, 300, -300])
def test_a_program_elsewhere_that_may_be_dead_is_waited_for(machine, monkeypatch, capsys, ahead_s):
    """Whatever its clock says: clocks of two machines may differ by minutes."""
    here = machine("here")
    monkeypatch.setattr(owner, "POLL_S", 0.05)
    monkeypatch.setattr(owner, "DEAD_S", 1.0)
    began = time.monotonic()
    write_sign(here, time=time.time() + ahead_s)
    with sole_owner(here):
        assert time.monotonic() - began >= owner.DEAD_S
    assert "waiting 1 s for a sign of life of process 7 on elsewhere" in capsys.readouterr().out


def test_a_program_elsewhere_that_gives_another_sign_is_not_disturbed(machine, monkeypatch):
    here = machine("here")
    monkeypatch.setattr(owner, "POLL_S", 0.05)
    write_sign(here)
    message = "process 7 on elsewhere is running it; stop it first"
    with signs_from_elsewhere(here), pytest.raises(ConfigError, match=message), sole_owner(here):
        pass


@pytest.mark.parametrize(("torn", "free"), [(owner.READS - 1, False), (owner.READS, True)])
def test_a_sign_that_is_replaced_while_it_is_read_is_read_again(machine, monkeypatch, torn, free):
    here, genuine, texts = machine("here"), json.loads, iter(range(torn))

    def loads(text):
        return genuine(text[:5] if next(texts, None) is not None else text)

    write_sign(here, machine=_machine(), pid=os.getpid())
    monkeypatch.setattr(owner.json, "loads", loads)
    with nullcontext() if free else pytest.raises(ConfigError, match="is running it; stop it first"), sole_owner(here):
        pass


def test_a_program_that_was_taken_over_is_interrupted(machine, monkeypatch):
    """It slept for longer than it may: another one has claimed the sweep."""
    here, killed = machine("here"), []
    monkeypatch.setattr(owner, "SIGN_S", 0.05)
    monkeypatch.setattr(owner.os, "kill", lambda *arguments: killed.append(arguments))
    with sole_owner(here), signs_from_elsewhere(here):
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            time.sleep(0.05)
    assert killed == [(os.getpid(), signal.SIGTERM)]
    assert sign_of(here)["id"] == "x"  # the other one's sign stays


def test_a_new_machine_has_the_files_once_it_owns_the_sweep(machine):
    here, there = machine("here"), machine("there")
    (here / "sweep.yaml").write_text("a: 1")
    Pusher(store_of(here), here, DRIVER).push()
    there.rmdir()
    assert resumed_folder(there.parent, "run", "sweep.yaml") == there
    with sole_owner(there):
        assert (there / "sweep.yaml").read_text() == "a: 1"
    with pytest.raises(ConfigError, match=r"must be the name or folder of a sweep.*in s3://bucket/.*, existing: run"):
        resumed_folder(there.parent, "other", "sweep.yaml")


def test_names_are_taken_in_the_store_and_free_again_when_they_are_deleted_there(machine):
    here, there = machine("here"), machine("there")
    (here / "run.yaml").write_text("a: 1")
    pusher = Pusher(store_of(here), here, DRIVER)
    pusher.push()
    there.rmdir()
    config = TrainConfig(storage=there.parent, name="run")
    with pytest.raises(ConfigError, match=r"name = run: is taken in s3://bucket/"):
        new_folder(config)
    for name in objects(f"{there.parents[1].parent.name}/run"):
        store_of(here).filesystem.delete_file(store_of(here).object_of(here / name))
    assert new_folder(config) == there
    assert new_folder(TrainConfig(storage=here.parent, name="run")) == here
    assert not here.exists()
    [aside] = here.parent.glob(".run-*")  # nothing is thrown away
    assert (aside / "run.yaml").read_text() == "a: 1"
    create(here, "run.yaml", "b: 2")


def test_trials_come_with_a_sweep_that_is_read_but_not_their_checkpoints(machine):
    here, there = machine("here"), machine("there")
    trial = here / "trials" / "0003"
    (trial / "reports").mkdir(parents=True)
    (trial / "reports" / "step-00000010.json").write_text("{}")
    (trial / "checkpoint-00000010.pt").write_text("weights")
    (here / "sweep.yaml").write_text("a: 1")
    Pusher(store_of(here), here, DRIVER).push()
    Pusher(store_of(here), trial, RUN).push()
    fetch_to_read(there)
    found = sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.suffix)
    assert found == ["sweep.yaml", "trials/0003/reports/step-00000010.json"]


def test_the_store_knows_a_record_before_mlflow_does(machine):
    here, there = machine("here"), machine("there")
    (here / "spool").mkdir()
    journal = here / "spool" / "journal.jsonl"
    delivery = Delivery(here)
    for number in range(3):
        with journal.open("a") as file:
            file.write(f"{number}\n")
        assert delivery.ready([{"kind": "tags"}]) == [{"kind": "tags"}]
        pull(store_of(there), there, DRIVER)
        assert (there / "spool" / "journal.jsonl").read_text() == journal.read_text()


def test_a_record_waits_for_its_image_and_then_gives_it_up(machine, monkeypatch):
    here, worker = machine("here"), machine("worker")
    image = here / "trials" / "0000" / "grids" / "step-00000004.png"
    now = int(time.time() * 1000)
    events = [{"kind": "metrics"}, {"kind": "image", "path": str(image), "time_ms": now}, {"kind": "end"}]
    delivery = Delivery(here)
    assert delivery.ready(events) == events[:1]
    there = worker / "trials" / "0000" / "grids"
    there.mkdir(parents=True)
    (there / image.name).write_bytes(b"png")
    Pusher(store_of(worker), there.parent, RUN).push()
    assert delivery.ready(events) == events
    assert image.read_bytes() == b"png"
    image.unlink()
    (there / image.name).unlink()
    Pusher(store_of(worker), there.parent, RUN).push()
    assert delivery.ready(events) == events[:1]
    monkeypatch.setattr(program, "IMAGE_WAIT_S", -1.0)
    assert delivery.ready(events) == events


def test_without_a_store_nothing_is_asked(tmp_path):
    assert Delivery(tmp_path).ready([None]) == [None]
    check_storage(tmp_path / "new")
    assert (tmp_path / "new").is_dir()


def test_a_store_that_cannot_be_used_is_one_line(machine, monkeypatch):
    here = machine("here").parent
    with pytest.raises(ConfigError, match=r"storage = s3://.*: must be a folder on a disk; only sweeps and train.py"):
        check_storage(here)
    check_storage(here, may_be_store=True)
    missing = here.with_name("s3=3A=2F=2Fno-such-bucket")
    with pytest.raises(ConfigError, match=r"storage = s3://no-such-bucket: cannot be used \(.*credentials come from"):
        check_storage(missing, may_be_store=True)
    unknown = here.with_name("nonsense=3A=2F=2Fbucket")
    with pytest.raises(ConfigError, match=r"storage = nonsense://bucket: cannot be used \(Protocol not known"):
        check_storage(unknown, may_be_store=True)
