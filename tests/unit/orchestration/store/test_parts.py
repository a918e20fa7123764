"""Copies of folders in an object store, against an S3-compatible server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration.store.location import Store, store_of
from orchestration.store.parts import DRIVER, RUN, Damaged, Pusher, pull, read_manifest
from tests.object_store import objects


def store(folder: Path) -> Store:
    found = store_of(folder)
    assert found is not None
    return found


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".partial").write_text(content)
        path.with_name(path.name + ".partial").replace(path)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def checkpoints(*steps: int) -> dict[str, str]:
    return {f"checkpoint-{step:08d}.pt": f"weights at {step}" for step in steps}


def test_another_machine_gets_the_run_as_it_is(machine):
    here, there = machine("here"), machine("there")
    write(here, **checkpoints(10), **{"config.yaml": "a: 1", "reports__step-00000010.json": "{}"})
    write(here, **{"trials.csv": "the driver's", "workers__x": "Ray's"})
    Pusher(store(here), here, RUN).push()
    pull(store(there), there, RUN)
    expected = {"checkpoint-00000010.pt": "weights at 10", "config.yaml": "a: 1", "reports/step-00000010.json": "{}"}
    assert contents(there) == expected
    pull(store(there), there, DRIVER)  # nobody has pushed this part
    assert contents(there) == expected


def test_files_that_are_not_needed_stay_in_the_store_until_they_are(machine):
    here, there = machine("here"), machine("there")
    write(here, **checkpoints(10), **{"config.yaml": "a: 1"})
    Pusher(store(here), here, RUN).push()
    pull(store(there), there, RUN, without="checkpoint-*.pt")
    assert contents(there) == {"config.yaml": "a: 1"}
    pull(store(there), there, RUN)
    assert contents(there) == contents(here)


def test_changes_and_deletions_reach_the_store_and_nothing_old_stays_in_it(machine, tmp_path):
    here, there = machine("here"), machine("there")
    pusher = Pusher(store(here), here, RUN)
    write(here, **checkpoints(10, 20), **{"best.json": "10"})
    pusher.push()
    pull(store(there), there, RUN)
    (here / "checkpoint-00000010.pt").unlink()
    write(here, **checkpoints(30), **{"best.json": "30"})
    pusher.push()
    pull(store(there), there, RUN)
    assert contents(there) == contents(here) == {**checkpoints(20, 30), "best.json": "30"}
    kept = {name.partition("~")[0] for name in objects(f"{tmp_path.name}/run")}
    assert kept == {*contents(here), RUN.manifest}
    assert len(objects(f"{tmp_path.name}/run")) == 4


def test_a_machine_that_is_ahead_of_the_store_keeps_its_work(machine):
    """Its worker died before it could upload; nobody else has touched the run."""
    here = machine("here")
    write(here, **checkpoints(10))
    Pusher(store(here), here, RUN).push()
    write(here, **checkpoints(20))
    pull(store(here), here, RUN)
    assert contents(here) == checkpoints(10, 20)
    never = machine("here", run="never uploaded")
    write(never, **checkpoints(10))
    pull(store(never), never, RUN)
    assert contents(never) == checkpoints(10)


def test_a_machine_whose_run_went_on_elsewhere_gives_up_its_own_version(machine):
    here, there = machine("here"), machine("there")
    write(here, **checkpoints(10))
    Pusher(store(here), here, RUN).push()
    write(here, **checkpoints(20), **{"best.json": "here"})
    pull(store(there), there, RUN)
    write(there, **checkpoints(30), **{"best.json": "there"})
    Pusher(store(there), there, RUN).push()
    pull(store(here), here, RUN)
    assert contents(here) == contents(there) == {**checkpoints(10, 30), "best.json": "there"}


def test_a_damaged_object_is_named_and_all_others_are_copied(machine):
    here, there = machine("here"), machine("there")
    write(here, **checkpoints(10, 20))
    Pusher(store(here), here, RUN).push()
    damaged = store(here).object_of(here / "checkpoint-00000020.pt")
    with store(here).filesystem.open_output_stream(damaged) as stream:
        stream.write(b"weights at 2!")
    with pytest.raises(Damaged, match=r"run/checkpoint-00000020.pt: does not match its checksum$"):
        pull(store(there), there, RUN)
    assert contents(there) == checkpoints(10)
    store(here).filesystem.delete_file(damaged)
    with pytest.raises(Damaged, match=r"run/checkpoint-00000020.pt: is missing$"):
        pull(store(there), there, RUN)


def test_a_writer_that_dies_between_files_and_manifest_leaves_the_old_state(machine, monkeypatch):
    here, there = machine("here"), machine("there")
    write(here, **checkpoints(10), **{"best.json": "10"})
    Pusher(store(here), here, RUN).push()
    write(here, **checkpoints(20), **{"best.json": "20"})
    dying = Pusher(store(here), here, RUN)
    original = dying._write

    def write_files_only(name, blocks):
        if name == RUN.manifest:
            raise ConnectionError("killed")
        original(name, blocks)

    monkeypatch.setattr(dying, "_write", write_files_only)
    with pytest.raises(ConnectionError):
        dying.push()
    pull(store(there), there, RUN)
    assert contents(there) == {**checkpoints(10), "best.json": "10"}
    Pusher(store(here), here, RUN).push()
    pull(store(there), there, RUN)
    assert contents(there) == {**checkpoints(10, 20), "best.json": "20"}


def test_growing_files_are_copied_up_to_a_moment_at_which_the_study_knows_what_the_records_say(machine):
    here = machine("here")
    write(here, spool__journal="", **{"spool__journal.jsonl": "trial 1 ended\n", "study.journal": "1 ended\n"})
    scanned = [path.name for path in DRIVER.scan(here)]
    assert scanned[:2] == ["journal.jsonl", "study.journal"]
    pusher = Pusher(store(here), here, DRIVER)
    copy, grown = pusher._copy, []

    def grow_first(name, path, size, before):
        with path.open("a") as file:
            file.write("later\n")
        grown.append(name)
        return copy(name, path, size, before)

    pusher._copy = grow_first
    (here / "spool/journal").unlink()
    pusher.push()
    assert sorted(grown) == ["spool/journal.jsonl", "study.journal"]
    there = machine("there")
    pull(store(there), there, DRIVER)
    assert contents(there) == {"spool/journal.jsonl": "trial 1 ended\n", "study.journal": "1 ended\n"}
    pusher._copy = copy
    pusher.push()
    pull(store(there), there, DRIVER)
    assert contents(there)["study.journal"] == "1 ended\nlater\n"


def test_a_state_that_could_not_be_fetched_whole_is_mixed_with_no_other(machine):
    """Neither on the next try nor with files that were left out at first."""
    here, there = machine("here"), machine("there")
    write(there, **{"study.journal": "old", "interim.pt": "old", "sweep.yaml": "a: 1"})
    write(here, **{"study.journal": "new", "sweep.yaml": "a: 1"}, **checkpoints(10))
    Pusher(store(here), here, DRIVER).push()
    Pusher(store(here), here, RUN).push()
    store(here).filesystem.delete_file(store(here).object_of(here / "study.journal"))
    for _ in range(2):
        with pytest.raises(Damaged, match=r"study\.journal: is missing"):
            pull(store(there), there, DRIVER)
        assert not (there / "study.journal").exists()
    pull(store(there), there, RUN, without="*.pt")
    pull(store(there), there, RUN)
    assert contents(there) == {"sweep.yaml": "a: 1", **checkpoints(10)}


def test_a_cache_that_was_emptied_does_not_empty_the_store(machine, tmp_path):
    here = machine("here")
    write(here, **{"sweep.yaml": "a: 1", "study.journal": "1"})
    pusher = Pusher(store(here), here, DRIVER)
    pusher.push()
    before = objects(f"{tmp_path.name}/run")
    (here / "study.journal").unlink()
    with pytest.raises(OSError, match=r"study\.journal is gone from this machine"):
        pusher.push()
    assert objects(f"{tmp_path.name}/run") == before


def test_a_writer_that_was_overtaken_writes_nothing(machine):
    here, there = machine("here"), machine("there")
    write(here, **{"sweep.yaml": "a: 1", "study.journal": "1"})
    slow = Pusher(store(here), here, DRIVER)
    slow.push()
    pull(store(there), there, DRIVER)
    write(there, **{"study.journal": "1, then 2 there"})
    Pusher(store(there), there, DRIVER).push()
    write(here, **{"study.journal": "1, then 2 here"})
    with pytest.raises(OSError, match=r"another process has written s3://"):
        slow.push()
    third = machine("third")
    pull(store(third), third, DRIVER)
    assert contents(third)["study.journal"] == "1, then 2 there"


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/../../x"])
def test_somebody_s_store_cannot_write_outside_of_the_folder(machine, name):
    here = machine("here")
    stored = {"object": "x", "size": 0, "sha256": ""}
    with store(here).filesystem.open_output_stream(store(here).object_of(here / RUN.manifest)) as stream:
        stream.write(json.dumps({"version": "1", "files": {name: stored}}).encode())
    with pytest.raises(Damaged, match="is damaged"):
        pull(store(here), here, RUN)


def test_what_has_not_changed_is_not_sent_again(machine, monkeypatch):
    here = machine("here")
    write(here, **checkpoints(10), **{"config.yaml": "a: 1"})
    Pusher(store(here), here, RUN).push()
    version = read_manifest(store(here), here, RUN).version
    again, sent = Pusher(store(here), here, RUN), []
    monkeypatch.setattr(again, "_write", lambda name, blocks: sent.append(name))
    again.push()
    assert sent == []
    assert read_manifest(store(here), here, RUN).version == version


def test_a_manifest_that_cannot_be_read_is_named(machine):
    here = machine("here")
    with store(here).filesystem.open_output_stream(store(here).object_of(here / RUN.manifest)) as stream:
        stream.write(json.dumps({"files": {}}).encode())
    with pytest.raises(Damaged, match=r"\.manifest-run\.json: is damaged"):
        pull(store(here), here, RUN)
