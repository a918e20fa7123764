"""Fingerprints by content, and the cache that spares reading everything again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soflow.data import open_source
from soflow.data.base import DataError
from soflow.data.config import DatasetConfig
from soflow.data.latents import LatentFile, write_latents
from soflow.data.manifest import manifest
from soflow.files import sha256


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SOFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 10), (ord(name), 0, 0)).save(tmp_path / "data" / name / "1.png")
    return tmp_path / "data"


def fingerprint(root: Path) -> str:
    return open_source(DatasetConfig(name="image_folder", root=root, image_size=8)).fingerprint


def test_a_copy_has_the_same_fingerprint(cache, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # without times
    os.utime(tmp_path / "copy" / "a" / "1.png", (0, 0))
    assert fingerprint(tmp_path / "copy") == fingerprint(folder)
    Image.new("RGB", (8, 10), (1, 2, 3)).save(tmp_path / "copy" / "a" / "1.png")
    assert fingerprint(tmp_path / "copy") != fingerprint(folder)


def test_a_copied_file_of_latents_has_the_same_fingerprint(cache, tmp_path):
    moments = np.abs(np.random.default_rng(0).normal(size=(4, 8, 2, 2))).astype(np.float32)
    write_latents(tmp_path / "one.h5", [moments], np.arange(4), 2, 4)
    shutil.copyfile(tmp_path / "one.h5", tmp_path / "two.h5")
    before = LatentFile(tmp_path / "one.h5").fingerprint
    assert LatentFile(tmp_path / "two.h5").fingerprint == before
    moments[3, 0, 0, 0] += 1  # not among those that an index of few samples would see
    write_latents(tmp_path / "two.h5", [moments], np.arange(4), 2, 4)
    assert LatentFile(tmp_path / "two.h5").fingerprint != before


def test_files_are_read_once(cache, folder):
    paths = sorted(folder.glob("*/*.png"))
    first = manifest(folder, paths)
    assert [entry.sha256 for entry in first] == [sha256(path) for path in paths]
    assert [entry.sides for entry in first] == [(8, 10)] * 2
    # A change that keeps size and time is not seen: the file was not read again.
    stat, content = paths[0].stat(), paths[0].read_bytes()
    paths[0].write_bytes(content[:-1] + b"?")
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert manifest(folder, paths) == first
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert manifest(folder, paths)[0].sha256 == sha256(paths[0]) != first[0].sha256


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a/1.png": {"size": 1}}', b"\xff"])
def test_a_damaged_cache_is_made_again(content, cache, folder):
    before = fingerprint(folder)
    (file,) = cache.glob("manifests/*.json")
    file.write_bytes(content)
    assert fingerprint(folder) == before
    assert len(file.read_bytes()) > 100


def test_without_a_writable_cache_the_files_are_read(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("SOFLOW_CACHE", str(tmp_path / "cache"))
    expected = fingerprint(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOFLOW_CACHE", str(tmp_path / "file"))
    assert fingerprint(folder) == expected


def test_two_files_of_a_folder_keep_each_other_s_digests(cache, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        manifest(tmp_path, [tmp_path / name])
    (file,) = cache.glob("manifests/*.json")
    assert set(json.loads(file.read_text())) == {"one", "two"}


def test_a_file_that_cannot_be_read_is_named(cache, folder):
    (folder / "a" / "1.png").unlink()
    (folder / "a" / "1.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError, match=r"a/1\.png: cannot be read \(No such file or directory\)"):
        manifest(folder, [folder / "a" / "1.png"])


def test_a_damaged_image_has_a_digest_but_no_sides(cache, folder):
    (folder / "a" / "1.png").write_bytes(b"no image")
    (entry,) = manifest(folder, [folder / "a" / "1.png"])
    assert entry.sides is None
    assert entry.sha256 == sha256(folder / "a" / "1.png")
